"""What every task shares: where its records are, how they are split, and how a record becomes an `Example`.

A task is a config object with one pure function, `parse(record) -> Parsed`. All that can go wrong with a record is a
`RowFault` there, and an `Example` that says so here: a bad record never stops a corpus.
"""

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from kd.addresses import Address, checked_url, without_query
from kd.errors import InputError, RowFault
from kd.frozen import Frozen
from kd.rows import Example, RowError
from kd.tasks.arithmetic import check_values, has_same_value, has_value
from kd.tasks.fields import Record, id_at, is_in, is_missing, outermost
from kd.tasks.holdout import Holdout
from kd.tasks.parsed import Need, Parsed, check

Format = Literal["auto", "parquet", "jsonl", "csv"]
Delimiter = Annotated[
    str, BeforeValidator(lambda given: {"tab": "\t", "\\t": "\t"}.get(given, given)), Field(pattern=r'^[^"\r\n]$')
]
"""One character; a tab may be written as `tab`."""
Match = Literal["normalised", "exact", "value"]
_CONTENT_UID = re.compile(r"[a-z]+/#[0-9a-f]{20}")
_GLOB = re.compile(r"[*?\[]")
_STAR = re.compile(r"[*?]")
_FILE = re.compile(r"\.(parquet|jsonl|ndjson|json|csv|tsv)(\.gz)?$")


class Files(Frozen):
    """Which files below `path` hold which split: patterns such as `train[.-]*`, alternatives parted by `|`."""

    train: str | None = None
    """Files of the training split; null = none."""
    validation: str | None = None
    """Files of the validation split; null = none, or held out of train."""
    test: str | None = None
    """Files of the test split; null = none."""


class Limits(Frozen):
    """How many rows of a split to take, the first ones in the order of the files; null = all. Held-out rows count apart."""

    train: int | None = Field(None, gt=0)
    """Rows of train, after the hold-out."""
    validation: int | None = Field(None, gt=0)
    """Rows of validation."""
    test: int | None = Field(None, gt=0)
    """Rows of test."""

    def of(self, split: str) -> int | None:
        """The limit of one split; None for all its rows."""
        limits: dict[str, int | None] = self.model_dump()
        return limits[split]


class SideFile(Frozen):
    """A bounded file of another model's rationales, attached to the records by id. It must fit in a worker's memory."""

    path: Annotated[str, AfterValidator(checked_url)]
    """File, folder or glob, like the corpus."""
    format: Format = "auto"
    """Format of the file; auto = by its suffix."""
    delimiter: Delimiter | None = None
    """What stands between the cells of CSV; null = a comma. `tab` for TSV."""
    id: str = "id"
    """Column that holds the record's id."""
    rationale: str = "llm_rationale"
    """Column that holds the rationale."""
    label: str | None = None
    """Column that holds the model's answer; null = none."""


class PrepareConfig(Frozen):
    """How the corpus is cut into shards."""

    rows_per_shard: int = Field(1000, gt=0)
    """Rows of a shard: the unit of work, of restart and of sorting by length. Aim at four shards or more per worker, so
    a small corpus wants fewer rows (6,000 rows on 3 workers: 500), and at no more than a minute of work per shard."""
    max_error_frac: float = Field(0.01, ge=0, le=1)
    """Share of records that may be bad before the stage fails. A bad record stays in its place and says what is wrong."""


class TaskConfig(Frozen):
    """Base of every task.

    A row's uid is `<split>/<id>`, the split being that of the file: ids need be unique within a split only. Without an
    id column it is `<split>/#<hash>` of what the task reads of the record; the second of two records that are equal there is
    `<split>/#<hash>-2`.
    """

    type: str
    """Which task this is."""
    name: str | None = Field(None, pattern=r"^[a-z0-9_-]+$")
    """What rows and reports call the task; null = its type."""
    path: str
    """Folder of the corpus: local, `s3://`, `gs://` or `hf://datasets/OWNER/NAME/...`. A file or a glob is all train."""
    files: Files = Files()
    """Which files hold which split."""
    format: Format = "auto"
    """Format of the files; auto = by suffix: .parquet, .jsonl or .json (one object per line), .csv, the last two also .gz. Text
    is UTF-8; an empty cell of CSV, and NaN, is no value."""
    delimiter: Delimiter | None = None
    """What stands between the cells of CSV; null = a comma. `tab` for TSV: with it `.tsv` is read as CSV."""
    id: str | None = None
    """Column with the record's id; null = the uid is a hash of the record's content."""
    holdout: Holdout | None = None
    """Make validation of a part of train; null = validation has files of its own, or there is none."""
    limit_rows: Limits = Limits()
    """Take the first rows of a split only."""
    llm: SideFile | None = None
    """Rationales of another model in a file of their own; null = those in the records, if any."""
    match: Match = "normalised"
    """When an answer is right. `exact`: it has the target's very characters; `normalised`: the same but for case, white space
    and a final full stop; `value`: as an equation it has the target's value, and what has none is never right."""

    @abstractmethod
    def parse(self, record: Record) -> Parsed:
        """One record's parts. Pure. Raises RowFault where the record cannot be read."""

    @abstractmethod
    def needs(self) -> Sequence[Need]:
        """The columns that `parse` reads, the id apart, and where they must be. Others need not be in a record."""

    @cached_property
    def columns_read(self) -> frozenset[str]:
        """Every column that the task may read; the others do not matter, not even for the uid."""
        return outermost([*(column for need in self.needs() for column in need.any_of), self.id])

    @property
    def brings_choices(self) -> bool:
        """Whether rows bring choices of their own: segments of the role `choice`."""
        return False

    @property
    def fixed_labels(self) -> list[str]:
        """The labels that are the same for every row; none where rows bring their own, or answers are free text."""
        return []

    def judge(self, answer: str, target: str) -> bool:
        """Whether an answer is right, as `match` says."""
        if self.match == "value":
            return has_same_value(answer, target)
        return answer == target if self.match == "exact" else reads_alike(answer, target)

    @property
    def described(self) -> dict[str, Any]:
        """What the task is, for a manifest: where its files are does not matter."""
        return self.model_dump(mode="json", exclude={"path": True, "llm": {"path"}})

    @property
    def task(self) -> str:
        """What rows and reports call the task."""
        return self.name or self.type

    @property
    def splits(self) -> list[str]:
        """The splits of the corpus: those that have files, and validation where it is held out of train."""
        patterns: dict[str, str | None] = self.files.model_dump()
        return [split for split, pattern in patterns.items() if pattern or (split == "validation" and self.holdout)]

    def uid(self, record: Record, split: str) -> str:
        """The id of the row that this record of this split's files becomes."""
        try:
            if self.id:
                return f"{split}/{id_at(record, self.id)}"
        except RowFault:
            pass
        return content_uid({name: value for name, value in record.items() if name in self.columns_read}, split)

    def example(self, record: Record, split: str) -> Example:
        """The row that a record of this split's files becomes, with its error if it is bad."""
        uid = self.uid(record, split)
        try:
            if self.id:
                id_at(record, self.id)
            parsed = self.parse(record)
            check(parsed)
            self._check_value(parsed.target)
            if split == "train" and parsed.target is None:
                self._check_unlabelled()
        except RowFault as fault:
            return self.errored(uid, split, fault)
        return Example(
            uid=uid,
            error=None,
            task=self.task,
            split=split,
            segments=parsed.segments,
            target=parsed.target,
            label_set=parsed.label_set,
            evidence=parsed.evidence,
            llm_rationale=parsed.llm_rationale,
            llm_label=parsed.llm_label,
        )

    def errored(self, uid: str, split: str, fault: RowFault) -> Example:
        """The row of a record that cannot be read."""
        return Example(
            uid=uid,
            error=RowError(fault.reason, fault.detail),
            task=self.task,
            split=split,
            segments=[],
            target=None,
            label_set=[],
            evidence=[],
            llm_rationale=None,
            llm_label=None,
        )

    def check_columns(self, there: Mapping[str, Collection[str]], may_have_more: bool = False) -> None:
        """Raise InputError if a column that the task reads is not where it must be.

        Args:
            there: split to the columns of its first records. may_have_more: whether later records may have others, as
                JSON lines may; a column that need only be in some split is then not asked for.
        """
        anywhere = {" and ".join(there): {column for columns in there.values() for column in columns}}
        in_train = {split: columns for split, columns in there.items() if split == "train"}
        places = {"every split": there, "some split": {} if may_have_more else anywhere, "train": in_train, "optional": {}}
        for need in [*self.needs(), *([Need("task.id", (self.id,))] if self.id else [])]:
            for split, columns in places[need.where].items():
                if not any(is_in(column, columns) for column in need.any_of):
                    hint = ", or to null for ids made from the content" if need.key == "task.id" else ""
                    raise InputError(
                        f"task {self.task} reads the column {' or '.join(need.any_of)}, which the {split} records in {self.path}"
                        f" do not have; they have {', '.join(sorted(columns))}. Set {need.key} to one of these{hint}"
                    )

    def _check_value(self, target: str | None) -> None:
        """Where values are compared, a target has one. Raises RowFault."""
        if self.match == "value" and target is not None and not has_value(target):
            got = f"got the target {target!a:.60}"
            raise RowFault("unparsable", f"match: value expects an equation of numbers, + - * / and brackets; {got}")

    def _check_unlabelled(self) -> None:
        """A record of train may be unlabelled only where the config says so of the whole task. Raises RowFault."""
        for need in self.needs():
            if need.where == "train":
                raise RowFault("missing_field", f"{' or '.join(need.any_of)} is missing")

    @field_validator("files", "holdout", mode="before")
    @classmethod
    def _keep_preset(cls, given: Any, info: ValidationInfo) -> Any:
        """What the config does not mention in there keeps the preset's value."""
        preset = cls.model_fields[str(info.field_name)].default
        return preset.model_dump() | dict(given) if preset and isinstance(given, Mapping) else given

    @model_validator(mode="before")
    @classmethod
    def _one_file_is_train(cls, given: Any) -> Any:
        """A path that is a file or a glob becomes its folder, and a pattern for train."""
        if not isinstance(given, Mapping):
            return given
        path = given.get("path")
        wanted: Format = "auto" if given.get("files") else given.get("format", "auto")
        folder, pattern = folder_and_pattern(path, wanted) if isinstance(path, str) else ("", None)
        if pattern is None:
            return given
        if given.get("files"):
            raise ValueError(f"path {path} is a file or a glob, which is all train; for `files` give their folder as path")
        return {**given, "path": folder, "files": {"train": pattern, "validation": None, "test": None}}

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.holdout and self.files.validation:
            raise ValueError("validation comes from files.validation and from holdout; set one of them to null")
        if self.holdout and not self.files.train:
            raise ValueError("holdout takes its rows from train; set files.train")
        if self.llm and not self.id:
            raise ValueError("llm attaches a side file by id; set id to the column of the corpus that holds it")
        if not any((self.files.train, self.files.validation, self.files.test)):
            raise ValueError("no split has files; set files.train, files.validation or files.test to a pattern")
        if self.match == "value":
            check_values(self.fixed_labels)
        return self


def is_content_uid(uid: str) -> bool:
    """Whether a uid was made from a record's content rather than from its id."""
    return _CONTENT_UID.fullmatch(uid) is not None


def normalise(answer: str) -> str:
    """An answer for comparison: lower case, white space collapsed and stripped, without a final full stop."""
    return " ".join(answer.lower().split()).removesuffix(".").rstrip()


def reads_alike(one: str, other: str) -> bool:
    """Whether two answers are the same after `normalise`."""
    return normalise(one) == normalise(other)


def is_read(answer: str, judge: Callable[[str, str], bool]) -> bool:
    """Whether free text is an answer at all: it is not empty, and what a task can read is right for itself."""
    return bool(normalise(answer)) and judge(answer, answer)


def folder_and_pattern(path: str, wanted: Format = "auto") -> tuple[str, str | None]:
    """A path as its folder and, if it is a file or a glob, the pattern below that. A URL's query stays with the folder.

    Brackets alone make no glob of a path whose last name does not tell its format: that can only be a folder, unless the format
    is said (`wanted`). Nor is a glob what is a folder on this machine. What is in a pattern by its very name is found by it
    (`Place.glob`), so a file needs no care.

    Raises:
        ValueError: a URL holds credentials or an unknown option.
    """
    Address.of(path)
    path, query = without_query(path)
    glob, is_file = _GLOB.search(path), bool(_FILE.search(path))
    in_brackets_only = wanted == "auto" and not _STAR.search(path)
    is_folder = glob and not is_file and (in_brackets_only or ("://" not in path and Path(path).is_dir()))
    if is_folder or not (glob or is_file):
        return path + query, None
    folder = path[: glob.start() if glob else None].rpartition("/")[0]
    return (folder or ("/" if path.startswith("/") else ".")) + query, path.removeprefix(folder).lstrip("/")


def content_uid(record: Record, split: str) -> str:
    """A uid from the record's content: its canonical JSON, keys sorted, missing values left out. The same in every format."""
    content = {key: value for key, value in record.items() if not is_missing(value)}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return f"{split}/#{hashlib.sha256(canonical.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}"
