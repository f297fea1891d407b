"""What the folders of the audit say, as numbers, reasons and verdicts; what is not there is left out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from jobs.audit_wiring import AUDIT, AuditWiring
from jobs.teacher_findings import taught_on, validation_metrics
from jobs.teacher_wiring import TEACHER
from jobs.wiring import Wiring
from kd.audit_rows import Erasure, Measured
from kd.errors import StageError
from kd.evaluation.auditing import AuditSums, audit_sums
from kd.evaluation.faithfulness_sums import FaithfulnessSums, faithfulness_sums
from kd.evaluation.gate import GateVerdict, judged, over_strongest
from kd.evaluation.metric_names import IN_SAMPLE
from kd.evaluation.metrics import About, Mean, chance_metrics
from kd.evaluation.sums import Why
from kd.manifests import Manifest
from kd.reporting.tables import chance_level
from kd.rows import MetricRow, Row
from kd.shards import Work, completed

CHANCE = "chance"
"""Whose accuracy it is when answers are guessed."""

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class AuditFindings:
    """Reads the audit of a run, shard by shard, and writes nothing."""

    wiring: Wiring

    def metrics(self) -> list[MetricRow]:
        """Faithfulness, plausibility and label overlap of every source, and the teacher's accuracy on the measured rows.

        Where it was taught on these, that is called `IN_SAMPLE`, and its accuracy on validation stands beside it.
        """
        rows = [row for name in self._works.sources for row in self._of(name)]
        return [*rows, *self._on_the_measured_rows, *(self._unseen if self._measured else [])]

    @property
    def ranked(self) -> frozenset[str]:
        """The sources that rank words."""
        return self._works.ranked

    def left_out(self) -> dict[str, dict[str, Mapping[Why, int]]]:
        """How many rows say nothing about a measure: by source, metric and reason, where there are such rows."""
        asked = {name: sums.left_out() for name, sums in self._asked.items()}
        found = {name: sums.left_out(self._works.reported(name)) for name, sums in self._measured.items()}
        return {name: asked.get(name, {}) | found.get(name, {}) for name in self._works.sources}

    def reasons(self) -> list[str]:
        """Why measures have no value, and what the gate says: a sentence each."""
        found = dict[tuple[str, str], list[str]]()
        for name in self._works.sources:
            for metric, why in _told(self._nulls(name)).items():
                found.setdefault((metric, why), []).append(name)
        if self._measured and not self._answers and self.wiring.config.teacher is not None:
            found["accuracy", "no measured row has both a label and an answer of the teacher's own"] = [TEACHER]
        if self._answers and self._chance.value is None:
            found["accuracy_chance", "no measured row has both a label and a set of answers to guess from"] = [CHANCE]
        said = dict[tuple[str, str], list[str]]()
        for (metric, why), names in found.items():
            said.setdefault((", ".join(names), why), []).append(metric)
        nulls = [f"No {_listed(metrics)} for {names}: {why}." for (names, why), metrics in said.items()]
        return [*nulls, *(f"Gate: {verdict.text}." for verdict in self.verdicts())]

    def verdicts(self) -> list[GateVerdict]:
        """What the gate says of each gated source; nothing of an audit that is not complete."""
        if not self._measured or not set(self.wiring.config.audit.gated) <= set(self._asked):
            return []
        gains = {name: over_strongest(self._of(name)) for name in self._works.sources}
        judging = self._unseen if self._is_in_sample else self._on_the_measured_rows
        teacher = next((row for row in judging if row.metric == "accuracy"), None)
        return judged(self.wiring.config.audit, gains, teacher, chance_level(judging, teacher), self._is_in_sample)

    def check_gate(self) -> None:
        """Let students be trained. Raises StageError where `audit.on_fail` is stop and the gate is not passed, or not reached."""
        config = self.wiring.config.audit
        if config.min_faithfulness_gain is None or config.on_fail != "stop":
            return
        verdicts = self.verdicts()
        if not verdicts:
            raise StageError("audit.on_fail is stop, and the audit is not complete for this config; run the stage 'audit' first")
        failed = [verdict.text for verdict in verdicts if not verdict.passed]
        if failed:
            raise StageError(
                f"the audit's gate: {'; '.join(failed)}. No student was trained. Look at the rationales (python -m jobs.report"
                " makes the page), choose another method or a better teacher, or set audit.on_fail: warn"
            )

    def stages(self) -> dict[str, Manifest | None]:
        """The manifests by the name that the report gives them; None for what is not complete."""
        names = self._works.sources
        asked = {} if self._works.why_not_asked else {f"audit faithfulness {name}": self._erasures(name) for name in names}
        found = asked | {f"audit {name}": self._words(name) for name in names}
        return {title: each[1] if each else None for title, each in found.items()}

    # --- what each source has ---

    def _of(self, name: str) -> Iterator[MetricRow]:
        about = self._about("rationales", name)
        if name in self._asked:
            yield from self._asked[name].metrics(about)
        if name in self._measured:
            yield from self._measured[name].metrics(about, self._works.reported(name))

    def _nulls(self, name: str) -> dict[str, str]:
        """Metric to reason."""
        if name not in self._measured:
            return {}
        nulls = self._measured[name].nulls(self._works.reported(name))
        if self._works.why_not_asked:
            return nulls | {"faithfulness": self._works.why_not_asked}
        if name not in self._asked:
            return nulls | {"faithfulness": "it is not complete; run audit"}
        return nulls | self._asked[name].nulls()

    @cached_property
    def _answers(self) -> list[MetricRow]:
        """How good the teacher's answers to the measured rows are, which are the same for every source."""
        sums = next(iter(self._measured.values()), AuditSums())
        rows = sums.teacher(self._about(TEACHER, TEACHER, 0))
        return [replace(row, metric=IN_SAMPLE) if self._is_in_sample and row.metric == "accuracy" else row for row in rows]

    @property
    def _on_the_measured_rows(self) -> list[MetricRow]:
        """The teacher's answers and what guessing gives; none where it has not answered."""
        return [*self._answers, *chance_metrics(self._chance, self._about(CHANCE, CHANCE, 0))] if self._answers else []

    @property
    def _is_in_sample(self) -> bool:
        """Whether the measured rows are of the split that the teacher was taught on."""
        return self.wiring.config.audit.split == taught_on(self.wiring.config)

    @cached_property
    def _unseen(self) -> list[MetricRow]:
        """The teacher on rows that it has not seen, where it has seen the measured ones; none where it was not validated."""
        return validation_metrics(self.wiring) if self._is_in_sample else []

    @property
    def _chance(self) -> Mean:
        """What guessing gives on the same rows."""
        return next((sums.chance for sums in self._measured.values()), Mean())

    @cached_property
    def _asked(self) -> dict[str, FaithfulnessSums]:
        names = () if self._works.why_not_asked else self._works.sources
        found = _there({name: self._erasures(name) for name in names})
        return {name: self._faithfulness(name, self._shards(*each, Erasure)) for name, each in found}

    def _faithfulness(self, name: str, shards: Iterator[list[Erasure]]) -> FaithfulnessSums:
        total, ranked = FaithfulnessSums(), self._works.reported(name).ranked
        for rows in shards:
            total += faithfulness_sums(rows, ranked)
        return total

    @cached_property
    def _measured(self) -> dict[str, AuditSums]:
        found = {name: self._words(name) for name in self._works.sources}
        return {name: sum(map(audit_sums, self._shards(*each, Measured)), AuditSums()) for name, each in _there(found)}

    # --- what is there ---

    @cached_property
    def _works(self) -> AuditWiring:
        return AuditWiring(self.wiring)

    def _erasures(self, name: str) -> tuple[str, Manifest] | None:
        return self._completed(lambda: self._works.erasures(name))

    def _words(self, name: str) -> tuple[str, Manifest] | None:
        return self._completed(lambda: self._works.measured(name))

    def _completed(self, work: Callable[[], Work]) -> tuple[str, Manifest] | None:
        try:
            return completed(self.wiring.store, work())
        except StageError:
            return None

    def _shards(self, folder: str, manifest: Manifest, row_type: type[R]) -> Iterator[list[R]]:
        return (self.wiring.store.read_rows(f"{folder}/{shard.file}", row_type) for shard in manifest.shards)

    def _about(self, subject: str, variant: str, seed: int | None = None) -> About:
        config = self.wiring.config
        return About(subject, AUDIT, variant, seed, config.task.task, config.audit.split)


def _there(found: Mapping[str, tuple[str, Manifest] | None]) -> Iterator[tuple[str, tuple[str, Manifest]]]:
    return ((name, each) for name, each in found.items() if each is not None)


def _told(nulls: Mapping[str, str]) -> dict[str, str]:
    """The reasons without those of rows told apart by who was right, where what is about all of them is null too."""
    return {
        metric: why
        for metric, why in nulls.items()
        if not metric.endswith(("/right", "/wrong")) or f"{metric.rpartition('/')[0]}/all" not in nulls
    }


def _listed(metrics: Sequence[str]) -> str:
    """Metrics in few words: those of the same parts together, and the parts once."""
    parts, names = dict[str, list[str]](), dict[str, list[str]]()
    for metric in metrics:
        name, _, part = metric.partition(":")
        parts.setdefault(name, []).append(part)
    for name, own in parts.items():
        names.setdefault(", ".join(own), []).append(name)
    return "; ".join(f"{', '.join(own)} of {part}" if part else ", ".join(own) for part, own in names.items())
