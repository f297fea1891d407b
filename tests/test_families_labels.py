"""Labels that are the same to a tokenizer are told before anything is ranked, read or taught."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from jobs.stages import check_models, wiring
from kd.attribution.engine import AttributionConfig, Engine
from kd.errors import ConfigError, RowFault
from kd.evaluation.answers import Answerer, EvaluationConfig
from kd.families.base import Family
from kd.families.opening import open_family
from kd.loading import save
from kd.models import Loaded, ModelConfig
from kd.rows import RowError
from tests.mini import TINY, mini_config, prepared, write_mini
from tests.test_corpus import write_jsonl
from tests.test_stages import session
from tests.tiny import example, tiny_classifier, tiny_models, tiny_t5
from tests.tiny_answers import recipe

WORDS = ["<pad>", "</s>", "<unk>", "good", "bad", "very", "▁"]
SAME = "reads '<' and '>' alike"


def fault_of(family: Family, *labels: str) -> str | None:
    try:
        family.check_labels(labels)
    except RowFault as fault:
        return f"{fault.reason}: {fault.detail}"
    return None


@pytest.fixture
def writer(tmp_path: Path) -> Family:
    """A T5 that has no token for `<`, `>` and emoji, as the published ones."""
    return open_family(tiny_t5(tmp_path), ModelConfig(name="x", max_answer_tokens=8, max_input_tokens=64))


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (("yes", "no"), None),
        (("yes", "yes"), None),
        (("yes", "yes "), None),
        (("very <", "very >"), "reads 'very <' and 'very >' alike"),
        (("<", ">"), "has no token for '<': it reads it as unknown"),
        (("yes", "😀"), "has no token for '😀': it reads it as unknown"),
        (("yes 😀", "no 😀"), None),
    ],
)
def test_labels_of_the_same_tokens_and_labels_of_no_known_token_are_named(
    writer: Family, labels: tuple[str, ...], fault: str | None
) -> None:
    found = fault_of(writer, *labels)
    assert (found is None) == (fault is None)
    assert fault is None or (found is not None and found.startswith("tokenizer_error: the tokenizer of ") and fault in found)


@pytest.mark.parametrize("kind", ["bart", "pair", "llama"])
def test_every_writing_family_is_asked(kind: str) -> None:
    family = open_family(tiny_models(kind), ModelConfig(name="x", max_answer_tokens=8, max_input_tokens=32))
    assert fault_of(family, "yes", "no") is None
    assert "alike" in str(fault_of(family, "yes 😀", "yes 😢"))


def test_labels_that_read_the_same_once_they_are_written_are_named_too() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>")),
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
    )
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    model = tiny_models("llama").model
    family = open_family(Loaded(model, tokenizer, "words", "decoder_only"), ModelConfig(name="x", max_answer_tokens=8))
    assert fault_of(family, "good", "bad") is None
    assert "of words reads 'good one' and 'good two' alike" in str(fault_of(family, "good one", "good two"))


def test_a_classifier_has_one_class_for_two_spellings() -> None:
    family = open_family(tiny_classifier(("yes", "no")), ModelConfig(name="x", max_answer_tokens=8))
    assert "reads 'Yes' and 'yes' alike" in str(fault_of(family, "Yes", "yes"))
    assert fault_of(family, "Yes", "no") is None


def test_a_row_whose_options_are_the_same_to_the_model_has_an_error_wherever_it_is_answered_or_taught(writer: Family) -> None:
    bad, good = example(choices=("very <", "very >"), target="very <", uid="bad"), example(uid="good")
    for answer in ("rank", "generate"):
        config = EvaluationConfig.model_validate({"answer": answer})
        found: list[Any] = [*Answerer(recipe(config=config), writer).answer([bad, good], Counter())]
        assert is_told(found)
    assert is_told([*Engine(AttributionConfig(), writer).attribute([bad, good], Counter())])


def is_told(found: list[Any]) -> bool:
    bad, good = found
    return (
        isinstance(bad, RowError)
        and bad.reason == "tokenizer_error"
        and "'very <'" in bad.detail
        and "'very >'" in bad.detail
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
    for names, fault in ((["yes <", "yes >"], "reads 'yes <' and 'yes >' alike"), (["😢", "yes"], "no token for '😢'")):
        config = mini_config(path, **{role: model, "task": classes(tmp_path, names)})
        with pytest.raises(ConfigError, match=f"the {role}: the tokenizer of .*model.* {fault}.* other names in task.labels"):
            check_models(config)
    check_models(mini_config(path, **{role: model, "task": classes(tmp_path, ["yes", "no"])}))


def test_a_tokenizer_of_the_corpus_that_cannot_tell_classes_apart_is_refused_and_not_kept(tmp_path: Path) -> None:
    spec = TINY | {"tokenizer": "word", "vocab_size": 8}
    task = classes(tmp_path, ["seldom", "hardly"])
    task |= {"prompt": [{"column": "q"}], "labels": ["seldom", "hardly"]}
    ready = session(prepared(mini_config(write_mini(tmp_path), teach=None, teacher={"spec": spec}, task=task)).config)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"the teacher: the tokenizer of spec t5 .*'(seldom|hardly)'.* or raise spec.vocab_size"
        ):
            wiring(ready)
    assert not list(Path(ready.config.directory).glob("tokenizers/*"))
