"""Which rows the audit reads, and what it makes of them: for each source of rationales two works."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from jobs.slices import model_slice, spread_rows
from jobs.teacher_wiring import TEACHER
from jobs.wiring import Wiring
from kd.audit_rows import Erasure, Measured
from kd.evaluation.auditing import MeasureRationales, Reported
from kd.evaluation.faithfulness import Faithfulness
from kd.evaluation.faithfulness_sums import CONTROLS
from kd.manifests import Manifest
from kd.rationales import UNEXPLAINED, AttributionSource, LlmSource, RationalesConfig, SourceConfig
from kd.rows import RationaleRow
from kd.shards import Work, completed

AUDIT = "audit"


@dataclass(frozen=True)
class AuditWiring:
    """The works of the audit. Asking for one whose rationales are not finished is a StageError that names the stage to run."""

    wiring: Wiring

    @cached_property
    def sources(self) -> Mapping[str, SourceConfig]:
        """Every source of rationales, by its name."""
        return {source.name: source for source in self.wiring.config.rationales.sources}

    @property
    def why_not_asked(self) -> str | None:
        """Why no teacher is asked again; None where one is."""
        if self.wiring.config.teacher is None:
            return "the config has no teacher to ask again"
        return "audit.faithfulness is null" if self.wiring.config.audit.faithfulness is None else None

    def works(self) -> tuple[list[Work], list[Work]]:
        """Those that need the teacher, and those that need no model."""
        asked = [] if self.why_not_asked else [self.erasures(name) for name in self.sources]
        return asked, [self.measured(name) for name in self.sources]

    @property
    def ranked(self) -> frozenset[str]:
        """The sources that rank words."""
        return frozenset(name for name in self.sources if self.reported(name).ranked)

    @property
    def explained(self) -> str:
        """The source whose rows show what the teacher's attribution found: one that ranks words, else the first."""
        return next((name for name in self.sources if name in self.ranked), next(iter(self.sources)))

    def reported(self, name: str) -> Reported:
        """What the report has of this source, whatever its rows say."""
        config, source = self.wiring.config, self.sources[name]
        explained = UNEXPLAINED if config.teacher is None else config.attribution.explained
        return Reported(isinstance(source, AttributionSource), isinstance(source, LlmSource), explained)

    def erasures(self, name: str) -> Work:
        """The teacher asked again without the words of this source. There must be a teacher to ask (`why_not_asked`)."""
        config, cluster = self.wiring.config, self.wiring.config.cluster
        faithfulness = config.audit.faithfulness
        assert faithfulness is not None  # why_not_asked has said so
        assert config.teacher is not None
        folder, manifest = self._rationales(name)
        return Work(
            title=AUDIT,
            recipe=Faithfulness(
                faithfulness,
                self.wiring.teacher,
                self._unmerged.units,
                config.rationales.units,
                config.rationales.control,
                config.rationales.roles,
                self.reported(name).ranked,
                cluster.model_device,
                cluster.threads_per_actor,
            ),
            source=folder,
            target=f"{AUDIT}/faithfulness/{name}",
            reads=RationaleRow,
            writes=Erasure,
            shards=spread_rows(manifest.shards_of(config.audit.split), faithfulness.rows),
            config={
                **faithfulness.model_dump(mode="json", include={"fractions", "seed"}),
                "erased": "single words",
                "orders": list(dict.fromkeys(order for pair in CONTROLS for order in pair)),
                "teacher": model_slice(config.teacher),
            },
            inputs={"rationales": manifest.digest, TEACHER: self.wiring.teacher_digest},
            max_error_frac=faithfulness.max_error_frac,
            max_error_key="audit.faithfulness.max_error_frac",
        )

    def measured(self, name: str) -> Work:
        """Plausibility and label overlap of this source."""
        audit, rationales, task = self.wiring.config.audit, self.wiring.config.rationales, self.wiring.config.task
        reported = self.reported(name)
        folder, manifest = self._rationales(name)
        roles = tuple(dict.fromkeys((*rationales.roles, "choice")))
        options = (self._unmerged if reported.ranked else rationales).model_copy(update={"roles": roles})
        k = audit.top_k if reported.ranked else None
        return Work(
            title=AUDIT,
            recipe=MeasureRationales(
                rationales.units,
                self._unmerged.units,
                options.units,
                rationales.control,
                options.control,
                k,
                reported.is_text,
                rationales.keep_stop_words,
                task.judge,
            ),
            source=folder,
            target=f"{AUDIT}/words/{name}",
            reads=RationaleRow,
            writes=Measured,
            shards=spread_rows(manifest.shards_of(audit.split), audit.rows),
            config={"top_k": k, "match": task.match, "measures": [measure.name for measure in reported.every]},
            inputs={"rationales": manifest.digest},
            max_error_frac=0.0,  # what is no rationale has its error already
            max_error_key="audit",
        )

    @property
    def _unmerged(self) -> RationalesConfig:
        """Each occurrence of a word by itself, which is how rankings are measured."""
        return self.wiring.config.rationales.model_copy(update={"merge_duplicates": False})

    def _rationales(self, name: str) -> tuple[str, Manifest]:
        return completed(self.wiring.store, self.wiring.rationales()[name])
