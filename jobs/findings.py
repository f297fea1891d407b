"""What the folders of a run say, as the numbers and examples of its report. What is not there is left out, never made up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ParamSpec, TypeVar

from jobs.agreements import is_wanted, looked, student_work
from jobs.audit_findings import CHANCE, AuditFindings
from jobs.audit_wiring import AuditWiring
from jobs.comparisons import compared
from jobs.costs import costs
from jobs.slices import first_rows
from jobs.teacher_findings import sampled, taught_on, validation_metrics
from jobs.teacher_wiring import EXAMPLES, TEACHER
from jobs.training_lines import validated
from jobs.wiring import Wiring
from kd.errors import StageError
from kd.evaluation.answer_sums import COLUMNS, AnswerSums, answer_sums
from kd.evaluation.metrics import About, Counts, chance, chance_metrics, is_near_chance
from kd.manifests import Manifest, Shard
from kd.reporting.agreement_table import Looked
from kd.reporting.comparison_table import Comparisons
from kd.reporting.cost_table import Cost
from kd.reporting.report import Report, Shown
from kd.reporting.tables import chance_level
from kd.rows import Example, MetricRow, Prediction, RationaleRow
from kd.shards import Work, completed
from kd.training.config import Variant
from kd.training.objectives import LabelOnly
from kd.training.runs import trained

SHOWN_EXAMPLES = 10
NOT_YET = "it has not been trained and evaluated"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Findings:
    """Reads a run and writes nothing. Every stage may be missing. What was read of the audit before is not read again."""

    wiring: Wiring
    audit: AuditFindings | None = None

    def report(self) -> Report:
        """Everything that the report is made from."""
        config = self.wiring.config
        baseline = next((variant.name for variant in config.training.variants if isinstance(variant.objective, LabelOnly)), None)
        comparisons, agreement, cost = self._comparisons(), looked(self.wiring), costs(self.wiring, self._predictions)
        beside = [*self._differences(comparisons), *self._agreement(agreement), *self._costs(cost)]
        return Report(
            name=config.name,
            metrics=[*self._answers(), *self._chance(), *self._audit.metrics(), *beside],
            stages=self._stages(),
            config=config.model_dump(mode="json"),
            examples=self._examples(),
            baseline=baseline,
            audit=self._audit.reasons(),
            ranked=self._audit.ranked,
            left_out=self._audit.left_out(),
            notes=[*([config.about] if config.about else []), *self._explains_what_it_learned, *self._failures()],
            taught_on=taught_on(config),
            comparisons=comparisons,
            agreement=agreement,
            costs=cost,
        )

    def teacher_verdict(self) -> str:
        """How good the fine-tuned teacher is on validation, beside chance; said loudly where it is near it."""
        found = validation_metrics(self.wiring)
        accuracy = next((row for row in found if row.metric == "accuracy"), None)
        if accuracy is None:
            return "the teacher was not validated: there was no row to do it on"
        level = chance_level(found, accuracy)
        text = f"the teacher's validation accuracy is {validated(self._teaching()[1].figures)} of {accuracy.n:,} rows"
        if level is not None:
            text += f", chance is {level:.1%}"
        if is_near_chance(accuracy, level):
            text = f"WARNING: {text}. It has learnt next to nothing: its attributions and everything made from them mean nothing."
        return text

    def _stages(self) -> dict[str, Manifest | None]:
        """Every stage in order, under the name that the report gives it."""
        wiring = self.wiring
        stages: dict[str, Manifest | None] = {"prepare": wiring.examples_if_any}
        if wiring.config.teach is not None:
            stages["teach"] = _manifest(_or_none(self._teaching))
        if wiring.config.teacher is not None:
            stages["attribute"] = _manifest(_or_none(self._attributions))
        for source in wiring.config.rationales.sources:
            stages[f"rationalize {source.name}"] = _manifest(_or_none(self._rationales, source.name))
        stages |= self._audit.stages()
        for variant, seed in wiring.pairs:
            stages[f"train {variant.name}/{seed}"] = _manifest(_or_none(self._training, variant, seed))
        for (name, seed), found in self._predictions.items():
            stages[f"evaluate {name}/{seed}"] = _manifest(found)
        for variant, seed in wiring.pairs if is_wanted(wiring) else ():
            work = partial(student_work, wiring, variant, seed)
            stages[f"agreement {variant.name}/{seed}"] = _manifest(_or_none(self._completed, work))
        return stages

    @property
    def _explains_what_it_learned(self) -> list[str]:
        """That the rationales from which students learn are the teacher's on rows that it was taught on."""
        split = taught_on(self.wiring.config)
        if split is None:
            return []
        learned = f"its attributions of {split}, from which students learn, may be its memory"
        return [f"In-sample: the teacher was taught on {split}; {learned}."]

    def _failures(self) -> list[str]:
        """Which students have no model since their training failed."""
        failed = _or_none(self.wiring.failed_students) or {}
        return [f"The training of {name} failed at step {each.step}: {each.error}" for name, each in failed.items()]

    # --- numbers ---

    def _comparisons(self) -> Comparisons | None:
        """What tests say of the comparisons that the config declares; None where it declares none."""
        significance = self.wiring.config.significance
        if significance is None:
            return None
        named = {name for each in significance.comparisons for name in (each.variant, each.against)}
        failed = _or_none(self.wiring.failed_students) or {}
        absent = [f"{name}/{seed}" for (name, seed), found in self._predictions.items() if found is None and name in named]
        missing = {name: f"its training failed: {failed[name].error}" if name in failed else NOT_YET for name in absent}
        return Comparisons(compared(self.wiring.store, self._predictions, significance), significance, missing)

    def _differences(self, comparisons: Comparisons | None) -> Iterator[MetricRow]:
        config = self.wiring.config
        for verdict in comparisons.verdicts if comparisons else ():
            yield from verdict.metrics(config.task.task, config.evaluation.split)

    def _answers(self) -> Iterator[MetricRow]:
        for (name, seed), found in self._predictions.items():
            if found:
                folder, manifest = found
                yield from Counts.of(manifest.counts).metrics(self._about(name, seed))
                files = (f"{folder}/{shard.file}" for shard in manifest.shards)
                sums = (answer_sums(self.wiring.store.read_columns(file, COLUMNS)) for file in files)
                yield from sum(sums, AnswerSums()).metrics(self._about(name, seed))

    def _chance(self) -> Iterator[MetricRow]:
        if self.wiring.examples_if_any is not None:
            evaluation = self.wiring.config.evaluation
            shards = first_rows(self.wiring.examples.shards_of(evaluation.split), evaluation.limit_rows)
            level = chance(sampled(self.wiring.store, EXAMPLES, shards, Example))
            yield from chance_metrics(level, self._about(CHANCE, 0))

    def _costs(self, found: Sequence[Cost]) -> Iterator[MetricRow]:
        config = self.wiring.config
        for cost in found:
            yield from cost.metrics(config.task.task, config.evaluation.split)

    def _agreement(self, found: Sequence[Looked]) -> Iterator[MetricRow]:
        for student in found:
            yield from student.metrics(self.wiring.config.task.task)

    def _about(self, variant: str, seed: int) -> About:
        config = self.wiring.config
        subject = variant if variant in (TEACHER, CHANCE) else "student"
        return About(subject, "evaluate", variant, seed, config.task.task, config.evaluation.split)

    # --- rows ---

    def _examples(self) -> list[Shown]:
        """The first explained rows of the evaluated split, else of any, with what every model answered."""
        found = _or_none(self._rationales, AuditWiring(self.wiring).explained)
        if not found:
            return []
        folder, manifest = found
        shards = manifest.shards_of(self.wiring.config.evaluation.split) or list(manifest.shards)
        rows = [row for row in sampled(self.wiring.store, folder, shards[:1], RationaleRow) if row.error is None][:SHOWN_EXAMPLES]
        answers = self._answers_to({row.uid for row in rows}, shards[:1])
        return [Shown(row, answers.get(row.uid, ())) for row in rows]

    def _answers_to(self, uids: set[str], shards: Sequence[Shard]) -> dict[str, list[Prediction]]:
        """Every model's predictions for these rows, of shards that were evaluated."""
        answers: dict[str, list[Prediction]] = {}
        names = {shard.name for shard in shards}
        for folder, manifest in filter(None, self._predictions.values()):
            for row in sampled(self.wiring.store, folder, [each for each in manifest.shards if each.name in names], Prediction):
                if row.uid in uids and row.error is None:
                    answers.setdefault(row.uid, []).append(row)
        return answers

    # --- what is there ---

    @cached_property
    def _audit(self) -> AuditFindings:
        return self.audit or AuditFindings(self.wiring)

    @cached_property
    def _predictions(self) -> dict[tuple[str, int], tuple[str, Manifest] | None]:
        """What each model answered, by its variant and seed: None for one that was not trained or not evaluated."""
        models: dict[tuple[str, int], Callable[[], Work]] = {}
        if self.wiring.config.teacher is not None:
            models[TEACHER, 0] = self.wiring.teacher_predictions
        for variant, seed in self.wiring.pairs:
            models[variant.name, seed] = partial(self.wiring.student_predictions, variant, seed)
        return {model: _or_none(self._completed, work) for model, work in models.items()}

    def _completed(self, work: Callable[[], Work]) -> tuple[str, Manifest]:
        return completed(self.wiring.store, work())

    def _teaching(self) -> tuple[str, Manifest]:
        teach = self.wiring.config.teach
        assert teach is not None  # asked only where there is one
        return trained(self.wiring.store, self.wiring.teaching(), teach)

    def _training(self, variant: Variant, seed: int) -> tuple[str, Manifest]:
        return trained(self.wiring.store, self.wiring.student(variant, seed), self.wiring.config.training)

    def _attributions(self) -> tuple[str, Manifest]:
        return self._completed(self.wiring.attributions)

    def _rationales(self, source: str) -> tuple[str, Manifest]:
        return completed(self.wiring.store, self.wiring.rationales()[source])


def _or_none(find: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What is found, or None where its stage, or one before it, is not complete."""
    try:
        return find(*args, **kwargs)
    except StageError:
        return None


def _manifest(found: tuple[str, Manifest] | None) -> Manifest | None:
    return found[1] if found else None
