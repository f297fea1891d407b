"""Tokenizers trained for a spec: they give the text back, and the same texts give the same one."""

import pytest

from kd.specs import T5Spec
from kd.vocabulary import train_tokenizer
from tests import tiny


@pytest.mark.parametrize("kind", ["word", "unigram"])
def test_a_trained_tokenizer_gives_the_text_back(kind: str) -> None:
    tokenizer = train_tokenizer(T5Spec(tokenizer=kind, vocab_size=120), tiny.TEXTS)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    for text in ("(a) river-side", "coffee cake", "the café is open: yes"):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_white_space_is_one_space_and_case_is_kept_unless_asked() -> None:
    plain = train_tokenizer(T5Spec(vocab_size=120), tiny.TEXTS)
    assert plain("money \n  bank")["input_ids"] == plain("money bank")["input_ids"]
    assert plain("Money")["input_ids"] == [2, 1]
    lower = train_tokenizer(T5Spec(vocab_size=120, lowercase=True), tiny.TEXTS)
    assert lower("MONEY")["input_ids"] == lower("money")["input_ids"] != [2, 1]


def test_the_vocabulary_is_limited_and_the_same_texts_give_the_same_one() -> None:
    first, second = (train_tokenizer(T5Spec(vocab_size=20), iter(tiny.TEXTS)) for _ in range(2))
    assert len(first) == 20
    assert first.get_vocab() == second.get_vocab()
