"""Labels that are the same to a tokenizer are told before anything is ranked, read or taught."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.stages import check_models
from kd.attribution.engine import Attribute, AttributionConfig
from kd.errors import ConfigError, RowFault
from kd.families.base import Family, Generated
from kd.families.opening import open_family
from kd.loading import save
from kd.models import Loaded, ModelConfig
from kd.rows import RowError
from kd.training.features import Featurise
from kd.training.objectives import LabelOnly
from tests.mini import TINY, mini_config, prepared, write_mini
from tests.test_corpus import write_jsonl
from tests.tiny import WRITERS, example, tiny_classifier, tiny_source, tiny_t5
from tests.tiny_answers import recipe

LIMITS = ModelConfig(name="x", max_answer_tokens=8, max_input_tokens=32)


def fault_of(family: Family, *labels: str) -> str | None:
    try:
        family.check_labels(labels)
    except RowFault as fault:
        return f"{fault.reason}: {fault.detail}"
    return None


@pytest.fixture
def writer(tmp_path: Path) -> Family:
    """A T5 that has no token for `<`, `>` and emoji, as the published ones."""
    return open_family(tiny_t5(tmp_path), LIMITS)


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (("yes", "no"), None),
        (("yes", "yes"), None),
        (("yes", "yes "), None),
        (("yes", "😀"), None),
        (("yes 😀", "no 😀"), None),
        (("money <", "money >"), "reads 'money <' and 'money >' alike"),
        (("<", ">"), "reads '<' and '>' alike"),
        (("yes", "😢", "😀"), "reads '😢' and '😀' alike"),
    ],
)
def test_labels_of_the_same_tokens_are_named(writer: Family, labels: tuple[str, ...], fault: str | None) -> None:
    found = fault_of(writer, *labels)
    assert (found is None) == (fault is None)
    assert fault is None or (found is not None and found.startswith("tokenizer_error: the tokenizer of ") and fault in found)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writing_family_is_asked(models: dict[str, Loaded], kind: str) -> None:
    family = open_family(models[kind], LIMITS)
    assert fault_of(family, "yes", "no") is None
    assert "reads 'yes 😀' and 'yes 😢' alike" in str(fault_of(family, "yes 😀", "yes 😢"))
    assert family.knows("yes")
    assert not family.knows("😀")


def test_labels_that_read_the_same_once_they_are_written_are_named_though_their_tokens_differ(writer: Family) -> None:
    assert writer.encode_answer("yes") != writer.encode_answer("yes</s>")
    assert "reads 'yes' and 'yes</s>' alike" in str(fault_of(writer, "yes", "yes</s>"))


def test_a_classifier_has_one_class_for_two_spellings() -> None:
    family = open_family(tiny_classifier(("yes", "no")), LIMITS)
    assert "reads 'Yes' and 'yes' alike" in str(fault_of(family, "Yes", "yes"))
    assert fault_of(family, "Yes", "no") is None


def test_options_of_one_text_to_a_scorer_are_named(models: dict[str, Loaded]) -> None:
    assert "alike" in str(fault_of(open_family(models["scorer"], LIMITS), "😀", "😢"))


def test_unknown_tokens_alone_are_read_as_no_label(writer: Family) -> None:
    ids = writer.encode_answer("😀")
    assert writer.label_of(Generated("<unk>", True, ids), ["yes", "😀"]) is None
    assert writer.label_of(Generated("yes", True, writer.encode_answer("yes")), ["yes", "😀"]) == "yes"


def test_a_row_whose_options_are_the_same_to_the_model_has_an_error_wherever_it_is_answered_or_taught(tmp_path: Path) -> None:
    source = tiny_source(tmp_path, max_answer_tokens=8, max_input_tokens=64)
    rows = [example(choices=("money <", "money >"), target="money <", uid="bad"), example(uid="good")]
    for answer in ("rank", "generate"):
        assert is_told(recipe(source, answer=answer).open()(rows, Counter()))
    assert is_told(Attribute(AttributionConfig(), source, "cpu", 1).open()(rows, Counter()))
    assert is_told(Featurise(LabelOnly(), source).open()(rows, Counter()))


def is_told(found: list[Any]) -> bool:
    bad, good = found
    return (
        isinstance(bad, RowError)
        and bad.reason == "tokenizer_error"
        and "'money <'" in bad.detail
        and "'money >'" in bad.detail
        and (not isinstance(good, RowError))
    )


# --- before anything is paid for --------------------------------------------------------------------------------------


def classes(folder: Path, names: list[str]) -> dict[str, Any]:
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", [{"q": f"Is it {n}, yes or no?", "a": n % 2} for n in range(6)])
    return {
        "type": "columns",
        "path": str(folder),
        "files": {"train": "train*", "test": "test*"},
        "prompt": [{"column": "q"}],
        "target": "a",
        "target_is": "index",
        "labels": names,
    }


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_classes_that_are_the_same_to_a_model_are_refused_before_the_corpus_is_read(tmp_path: Path, role: str) -> None:
    save(tiny_t5(tmp_path), tmp_path / "model")
    model = {"name": str(tmp_path / "model"), "max_input_tokens": 32, "max_answer_tokens": 8}
    path = write_mini(tmp_path)
    for names, fault in ((["yes <", "yes >"], "reads 'yes <' and 'yes >' alike"), (["😢", "yes"], "knows nothing of '😢'")):
        config = mini_config(path, **{role: model, "task": classes(tmp_path, names)})
        with pytest.raises(ConfigError, match=f"the {role}: the tokenizer of .*model.* {fault}.* other names in task.labels"):
            check_models(config)
    check_models(mini_config(path, **{role: model, "task": classes(tmp_path, ["yes", "no"])}))


def test_a_tokenizer_of_the_corpus_that_cannot_tell_classes_apart_is_refused_and_not_kept(tmp_path: Path) -> None:
    spec = TINY | {"tokenizer": "word", "lowercase": True}
    task = classes(tmp_path, ["US", "us"])
    config = mini_config(write_mini(tmp_path), teach=None, teacher={"spec": spec}, task=task)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"the teacher: .* reads 'US' and 'us' alike.*; spec.vocab_size and spec.lowercase decide"
        ):
            prepared(config)
    assert not list(Path(config.directory).glob("tokenizers/*"))
