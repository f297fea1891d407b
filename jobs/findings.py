"""What the folders of a run say, as the numbers and examples of its report. What is not there is left out, never made up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jobs.wiring import EXAMPLES, TEACHER, Wiring
from kd.errors import StageError
from kd.evaluation.metrics import About, Counts, RationaleSums, chance, chance_metrics, rationale_sums
from kd.reporting.report import Report, Shown
from kd.rows import Attribution, Example, MetricRow, Prediction, RationaleRow
from kd.shards import Work, completed
from kd.store import Manifest, Shard
from kd.training.objectives import LabelOnly
from kd.training.runs import trained

SAMPLE_ROWS = 10_000
"""Rows read for numbers that no stage counts (chance levels, hit rates), at most; `n` in the report says how many."""
SHOWN_EXAMPLES = 10

T = TypeVar("T")
R = TypeVar("R", bound=Example)


@dataclass(frozen=True)
class Findings:
    """Reads a run. Every stage may be missing."""

    wiring: Wiring

    def report(self) -> Report:
        """Everything that the report is made from."""
        config = self.wiring.config
        baseline = next((variant.name for variant in config.training.variants if isinstance(variant.objective, LabelOnly)), None)
        return Report(
            name=config.name,
            metrics=[*self._answers(), *self._chance(), *self._rationale_quality()],
            stages=self._stages(),
            config=config.model_dump(mode="json"),
            examples=self._examples(),
            baseline=baseline,
            notes=[config.task.note] if config.task.note else [],
        )

    def _stages(self) -> dict[str, Manifest | None]:
        """Every stage in order, under the name that the report gives it."""
        wiring = self.wiring
        stages: dict[str, Manifest | None] = {"prepare": wiring.store.manifest(EXAMPLES)}
        if wiring.config.teach is not None:
            teach = wiring.config.teach
            stages["teach"] = _or_none(lambda: trained(wiring.store, wiring.teaching(), teach)[1])
        stages["attribute"] = _or_none(lambda: completed(wiring.store, wiring.attributions())[1])
        for source in wiring.config.rationales.sources:
            stages[f"rationalize {source.name}"] = _or_none(lambda name=source.name: self._rationales(name)[1])
        for run in _or_none(wiring.students) or []:
            stages[f"train {run.name}"] = _or_none(lambda run=run: trained(wiring.store, run, wiring.config.training)[1])
        for work in self._predictions():
            stages[f"evaluate {work.config['variant']}/{work.config['seed']}"] = _or_none(lambda w=work: completed(wiring.store, w)[1])
        return stages

    # --- numbers ---

    def _answers(self) -> Iterator[MetricRow]:
        for work in self._predictions():
            found = _or_none(lambda w=work: completed(self.wiring.store, w))
            if found:
                about = self._about(str(work.config["variant"]), int(str(work.config["seed"])))
                yield from Counts.of(found[1].counts).metrics(about)

    def _chance(self) -> Iterator[MetricRow]:
        if self.wiring.store.manifest(EXAMPLES) is not None:
            shards = self.wiring.examples.shards_of(self.wiring.config.evaluation.split)
            level = chance(self._sample(EXAMPLES, shards, Example))
            yield from chance_metrics(level, self._about("chance", 0))

    def _rationale_quality(self) -> Iterator[MetricRow]:
        config = self.wiring.config.rationales
        for source in config.sources:
            found = _or_none(lambda name=source.name: self._rationales(name))
            if found:
                folder, manifest = found
                sums = rationale_sums(self._sample(folder, manifest.shards_of("train"), RationaleRow), config.candidates_of)
                about = About("rationales", "rationalize", source.name, None, self.wiring.config.task.task, "train")
                yield from sums.metrics(about)

    def _about(self, variant: str, seed: int) -> About:
        config = self.wiring.config
        subject = variant if variant in (TEACHER, "chance") else "student"
        return About(subject, "evaluate", variant, seed, config.task.task, config.evaluation.split)

    # --- rows ---

    def _examples(self) -> list[Shown]:
        """The first explained rows of the evaluated split, else of any, with what every model answered."""
        sources = [source.name for source in self.wiring.config.rationales.sources]
        found = _or_none(lambda: self._rationales("attribution" if "attribution" in sources else sources[0]))
        if not found:
            return []
        folder, manifest = found
        shards = manifest.shards_of(self.wiring.config.evaluation.split) or list(manifest.shards)
        rows = [row for row in self._sample(folder, shards[:1], RationaleRow) if row.error is None][:SHOWN_EXAMPLES]
        answers = self._answers_to({row.uid for row in rows}, shards[:1])
        return [Shown(row, answers.get(row.uid, ())) for row in rows]

    def _answers_to(self, uids: set[str], shards: Sequence[Shard]) -> dict[str, list[Prediction]]:
        """Every model's predictions for these rows, of shards that were evaluated."""
        found: dict[str, list[Prediction]] = {}
        for work in self._predictions():
            done = _or_none(lambda w=work: completed(self.wiring.store, w))
            names = {shard.name for shard in shards}
            for row in self._sample(done[0], [s for s in work.shards if s.name in names], Prediction) if done else ():
                if row.uid in uids and row.error is None:
                    found.setdefault(row.uid, []).append(row)
        return found

    def _predictions(self) -> list[Work]:
        """The evaluation's works; none while a student is missing."""
        return _or_none(self.wiring.predictions) or []

    def _rationales(self, source: str) -> tuple[str, Manifest]:
        return completed(self.wiring.store, self.wiring.rationales()[source])

    def _sample(self, folder: str, shards: Sequence[Shard], row_type: type[R]) -> Iterator[R]:
        """Rows of the first shards, up to SAMPLE_ROWS; one shard in memory at a time."""
        left = SAMPLE_ROWS
        for shard in shards:
            if left <= 0:
                return
            yield from self.wiring.store.read_rows(f"{folder}/{shard.file}", row_type)[: min(left, shard.rows)]
            left -= shard.rows


def _or_none(find: Callable[[], T]) -> T | None:
    """What is found, or None where its stage, or one before it, is not complete."""
    try:
        return find()
    except StageError:
        return None
