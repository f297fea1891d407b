"""The whole config tree, and how it is read: one YAML file, then `--dotted.path=value` from the command line.

Each stage's config lives with its stage; here they meet. Nothing heavy is imported to read a config, so a wrong one is
refused at once. Unknown keys, wrong names and impossible combinations are errors that name the key's path.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from kd.addresses import Address, checked_url
from kd.attribution.engine import AttributionConfig
from kd.cluster_config import ClusterConfig
from kd.config_keys import explain, merge, spelled_out
from kd.errors import ConfigError
from kd.evaluation.answers import EvaluationConfig
from kd.evaluation.auditing import AuditConfig
from kd.evaluation.significance import SignificanceConfig
from kd.frozen import Frozen
from kd.models import ModelConfig
from kd.rationales import AttributionSource, RationalesConfig, ShuffledSource
from kd.tasks.anli import Anli
from kd.tasks.base import PrepareConfig
from kd.tasks.columns import Columns
from kd.tasks.commonsense_qa import CommonsenseQA
from kd.tasks.esnli import ESNLI
from kd.tasks.planted import Planted
from kd.tasks.svamp import Svamp
from kd.tasks.tweet_sentiment import TweetSentiment
from kd.training.config import TeachConfig, TrainingConfig

Task = Annotated[CommonsenseQA | ESNLI | Anli | Svamp | TweetSentiment | Columns | Planted, Field(discriminator="type")]


class Config(Frozen):
    """One run: a corpus, a teacher, an attribution, rationales, students; or without a teacher, from an LLM's rationales."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """The run's name; its directory is <root>/<name>."""
    about: str | None = None
    """What a reader of the report should know first."""
    root: Annotated[str, AfterValidator(checked_url)] = "runs"
    """Where run directories are: a local folder, s3://bucket/prefix or gs://bucket/prefix. Another service's endpoint comes from
    AWS_ENDPOINT_URL, or stands behind the prefix: ?endpoint_override=HOST:PORT&scheme=http."""
    task: Task
    """What the corpus is and how its records are read."""
    prepare: PrepareConfig = PrepareConfig()
    """How the corpus becomes shards of examples."""
    teacher: ModelConfig | None = None
    """The large model that is explained. Null: none is; students learn from labels and from what came with the corpus."""
    teach: TeachConfig | None = None
    """How the teacher is fine-tuned first. Null: it is used as it is."""
    attribution: AttributionConfig = AttributionConfig()
    """Which words decided the teacher's answer. Not for a run without a teacher."""
    rationales: RationalesConfig = RationalesConfig()
    """How scores become rationales, and which other sources of rationales there are."""
    audit: AuditConfig = AuditConfig()
    """How it is measured whether rationales are any good, and what they must reach before students are trained."""
    student: ModelConfig
    """The small model that learns."""
    training: TrainingConfig
    """Which students are trained, and how."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """On what the students are measured."""
    significance: SignificanceConfig | None = None
    """Which differences between students are tested. Null: none is, and the report says so."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the work runs."""

    @model_validator(mode="after")
    def _variants_have_sources(self) -> "Config":
        known = [source.name for source in self.rationales.sources]
        for variant in self.training.variants:
            if variant.source not in known:
                raise ValueError(
                    f"training.variants: {variant.name!r} learns from source {variant.source!r}; rationales.sources has {known}"
                )
        return self

    @model_validator(mode="after")
    def _compared_variants_are_trained(self) -> "Config":
        known = [variant.name for variant in self.training.variants]
        for comparison in self.significance.comparisons if self.significance else ():
            strange = [name for name in (comparison.variant, comparison.against) if name not in known]
            if strange:
                raise ValueError(
                    f"significance: {strange[0]!r} is no variant of training.variants, which has {known}; name two of these"
                )
        return self

    @model_validator(mode="after")
    def _an_attribution_is_compared_with_its_own_scores_shuffled(self) -> "Config":
        sources = {source.name: source for source in self.rationales.sources}
        variants = {variant.name: variant for variant in self.training.variants}
        against = dict[str, list[str]]()
        for comparison in self.significance.comparisons if self.significance else ():
            against.setdefault(comparison.variant, []).append(comparison.against)
        for name, controls in against.items():
            own = variants[name]
            alike = (variants[each] for each in controls if variants[each].objective == own.objective)
            is_controlled = any(isinstance(sources[each.source], ShuffledSource) for each in alike)
            if isinstance(sources[own.source], AttributionSource) and not is_controlled:
                raise ValueError(
                    f"significance: {name!r} learns from attributions and is compared with {', '.join(controls)}; expected among"
                    " these a variant with the same objective that learns from their scores shuffled, which favour long and"
                    " repeated words alike. Add {type: shuffled} to rationales.sources, a variant with source: shuffled to"
                    " training.variants, and the comparison with it"
                )
        return self

    @model_validator(mode="after")
    def _what_needs_a_teacher_has_one(self) -> "Config":
        if self.teacher is not None:
            return self
        without = "and the config has no `teacher`; give it one, or"
        if self.teach is not None:
            raise ValueError(f"teach: it fine-tunes the teacher, {without} leave teach out")
        if self.attribution != AttributionConfig():
            raise ValueError(f"attribution: it explains the teacher, {without} leave attribution out")
        if self.training.answers == "teacher":
            raise ValueError(f"training.answers: teacher is the teacher's answer, {without} set training.answers to gold or llm")
        for source in self.rationales.sources:
            if source.needs_attributions:
                raise ValueError(
                    f"rationales.sources: {source.name} is made from the teacher's attributions, {without} name only sources that"
                    " need none: llm, none"
                )
        return self

    @model_validator(mode="after")
    def _splits_have_rows(self) -> "Config":
        there, explained = self.task.splits, list(self.attribution.splits)
        for key, split in [("evaluation.split", self.evaluation.split), *(("attribution.splits", split) for split in explained)]:
            if split not in there:
                raise ValueError(
                    f"{key}: {split} is no split of this corpus, which has {', '.join(there)}; name one of these,"
                    f" or give {split} rows by task.files or task.holdout"
                )
        if "train" not in explained:
            raise ValueError(
                f"attribution.splits: students learn from the attributed rows of train, got {', '.join(explained) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _the_audit_has_what_it_measures(self) -> "Config":
        audit, known = self.audit, [source.name for source in self.rationales.sources]
        there = list(self.attribution.splits) if self.teacher else ["train"]
        if audit.split not in there:
            raise ValueError(f"audit.split: {audit.split} has no rationales; it is one of {', '.join(there)}")
        if audit.min_faithfulness_gain is None:
            return self
        if self.teacher is None:
            raise ValueError("audit.min_faithfulness_gain: a teacher is asked for it, and the config has none; leave it out")
        if not self.attribution.answers and self.attribution.explained == "gold":
            raise ValueError(
                "audit.min_faithfulness_gain: a gate must know whether the teacher is near chance, and attribution.answers ="
                " false leaves its answers out; set it to true, or have no gate"
            )
        missing = [name for name in audit.gated if name not in known]
        if missing or not audit.gated:
            raise ValueError(f"audit.gated: expected names of rationales.sources, {', '.join(known)}, got {missing or 'none'}")
        return self

    @property
    def directory(self) -> str:
        """The run directory."""
        return Address.of(self.root.rstrip("/")).below(self.name).url


class _CommandLine(Config, BaseSettings):
    """The same tree, read from `--dotted.path=value`."""

    model_config = SettingsConfigDict(extra="forbid", use_attribute_docstrings=True)


def read_config(program: str, description: str, arguments: Sequence[str], option: str = "--retry-errors") -> Config:
    """The config that `arguments` ask for: a YAML file, then overrides. `--help` prints every key and exits.

    `option` is what the program takes beside them, for its usage.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value that is not possible.
    """
    for argument in arguments:
        if argument.startswith("-") and argument != "-h" and not argument.startswith("--"):
            raise ConfigError(f"command line: {argument}: expected --dotted.path=value, with two dashes")
    overrides = [argument for argument in arguments if argument.startswith("--")]
    files = [argument for argument in arguments if not argument.startswith("-")]
    if "-h" in arguments or "--help" in arguments:
        _parse_overrides(program, description, ["--help"], option)
    if len(files) != 1:
        raise ConfigError(
            f"expected one config file, got {files or 'none'}; usage: {program} CONFIG [{option}] [--dotted.path=value ...]"
        )
    data = merge(read_yaml(files[0]), _parse_overrides(program, description, overrides, option), [Config])
    return validate(data, files[0])


def validate(data: Mapping[str, Any], where: str) -> Config:
    """A config from plain data; every mistake in it is named at once."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        problems = "\n".join(f"  {explain(problem, Config)}" for problem in error.errors())
        raise ConfigError(f"{where} with the command line's overrides is not a config:\n{problems}") from None


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        near = sorted(str(found) for found in Path(path).parent.glob("*.yaml"))
        raise ConfigError(f"cannot read the config {path}: {error.strerror}; in that folder: {near or 'no .yaml file'}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, got {type(data).__name__}")
    return data


def _parse_overrides(program: str, description: str, overrides: Sequence[str], option: str) -> dict[str, Any]:
    overrides = [spelled_out(override, Config) for override in overrides]
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            _CommandLine,
            root_parser=argparse.ArgumentParser(
                prog=program,
                usage=f"{program} CONFIG [{option}] [--dotted.path=value ...]",
                description=description,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            ),
            cli_parse_args=overrides,
            cli_hide_none_type=True,
            cli_exit_on_error=False,
        )
        return dict(source())
    except (SettingsError, argparse.ArgumentError) as error:
        raise ConfigError(f"command line: {error}; expected --dotted.path=value, see {program} --help") from None
