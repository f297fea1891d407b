"""Two texts in one input: as the tokenizer itself joins them, with its token types; and choices that all stand in one frame."""

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from kd.attribution.methods import InputXGradient
from kd.families.encoder_classifier import Alternatives
from kd.loading import seeded
from kd.models import Loaded
from kd.rows import Segment, Span
from kd.tasks.commonsense_qa import CommonsenseQA
from kd.tasks.esnli import ESNLI
from tests import tiny
from tests.tiny_attribution import attribute

PREMISE, HYPOTHESIS = "The café by the river is open", "Where would you find coffee?"
TEXT = [Segment("text", "The river bank")]


def joining_tokenizer(between: str = "[SEP]", types: bool = True, seps: int = 1) -> Any:
    """A tokenizer that joins two texts by so many separators, and tells them apart by types or not."""
    from tokenizers import processors

    tokenizer = tiny.bert_like_tokenizer()
    second = int(types)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A " + f"{between} " * seps + f"$B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer


def bert(labels: tuple[str, ...] = tiny.CLASSES, seed: int = 0, std: float = 0.5, **changes: object) -> Loaded:
    """A random BERT whose tokenizer joins pairs as BERT's does."""
    tokenizer = joining_tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=std, **named, **sizes | changes)
    with seeded(seed):
        return Loaded(BertForSequenceClassification(config).eval(), tokenizer, f"bert@{seed}", "encoder_classifier")


def pair(between: str = "</s>") -> list[Segment]:
    return [Segment("premise", PREMISE), Segment("prompt", between), Segment("hypothesis", HYPOTHESIS)]


def plain_logprobs(loaded: Loaded, *texts: str) -> list[float]:
    """Of every class, by transformers' own call on one text or a pair of texts."""
    with torch.no_grad():
        given = loaded.tokenizer(*texts, return_tensors="pt", return_token_type_ids=True)
        return loaded.model(**given).logits.log_softmax(-1)[0].tolist()


@pytest.mark.parametrize("between", ["</s>", "[SEP]", "\n", "", " [SEP] "])
def test_a_pair_is_read_as_transformers_own_pair_whatever_stands_between_to_part_it(between: str) -> None:
    loaded = bert()
    family = tiny.family(loaded)
    encoded = family.encode(pair(between))
    assert encoded.ids == loaded.tokenizer(PREMISE, HYPOTHESIS)["input_ids"]
    (found,) = family.read([encoded]).logprobs([[[0], [1], [2]]])
    assert found == pytest.approx(plain_logprobs(loaded, PREMISE, HYPOTHESIS), abs=1e-5)
    one_type = loaded.tokenizer(PREMISE, HYPOTHESIS, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        assert found != pytest.approx(loaded.model(**one_type).logits.log_softmax(-1)[0].tolist(), abs=1e-3)


def test_the_task_s_own_pair_is_one() -> None:
    loaded = bert()
    segments = ESNLI().pair(PREMISE, HYPOTHESIS)
    assert tiny.family(loaded).encode(segments).ids == loaded.tokenizer(PREMISE, HYPOTHESIS)["input_ids"]


def test_the_model_that_learns_reads_the_same_pairs_and_padding_has_type_zero() -> None:
    loaded = bert()
    family = tiny.family(loaded)
    rows = [family.encode(pair()), family.encode(TEXT)]
    nll = family.sequence_nll(loaded.model, [row.ids for row in rows], [[1], [2]])
    expected = [-plain_logprobs(loaded, PREMISE, HYPOTHESIS)[1], -plain_logprobs(loaded, TEXT[0].text)[2]]
    assert nll.tolist() == pytest.approx(expected, abs=1e-5)
    _, mask = family.batch([row.ids for row in rows])
    types = family.inputs([row.ids for row in rows])[2]["token_type_ids"]
    padded = loaded.tokenizer([PREMISE], [HYPOTHESIS], return_token_type_ids=True)["token_type_ids"][0]
    assert types.tolist() == [padded, [0] * len(padded)]
    assert (types * (1 - mask)).sum() == 0


def test_spans_of_a_pair_are_those_of_its_texts() -> None:
    family = tiny.family(bert())
    for between in ("</s>", "[SEP]", "\nHypothesis: "):
        encoded = family.encode(pair(between))
        read = [pair(between)[span.segment].text[span.start : span.end].lower() for span in encoded.spans if span]
        words = [token for token, span in zip(encoded.tokens, encoded.spans, strict=True) if span]
        assert [word for word, token in zip(read, words, strict=True) if token != "[UNK]"] == [t for t in words if t != "[UNK]"]
        assert Span(0, len(PREMISE) - 4, len(PREMISE)) in encoded.spans
        assert Span(2, 0, len("Where")) in encoded.spans


def test_words_between_the_texts_stay_words() -> None:
    loaded = bert()
    found = tiny.family(loaded).encode(pair("\nyes: "))
    assert found.ids == loaded.tokenizer(PREMISE, f"yes: {HYPOTHESIS}")["input_ids"]


@pytest.mark.parametrize("method", [InputXGradient()])
def test_scores_of_a_pair_are_those_of_a_gradient_with_its_types(method: InputXGradient) -> None:
    loaded = bert()
    row = tiny.example(choices=(), target="no", segments=pair(), label_set=list(tiny.CLASSES))
    (found,) = attribute(loaded, [row], method=method)
    given = loaded.tokenizer(PREMISE, HYPOTHESIS, return_tensors="pt", return_token_type_ids=True)
    embeds = loaded.model.get_input_embeddings()(given.pop("input_ids")).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loaded.model(inputs_embeds=embeds, **given).logits[0, 1], [embeds])
    spans = tiny.family(loaded).encode(row.segments).spans
    expected = [score for score, span in zip((gradient * embeds)[0].sum(-1).tolist(), spans, strict=True) if span]
    assert found.scores == pytest.approx(expected, abs=1e-5)


def test_a_pair_that_is_too_long_keeps_its_separator() -> None:
    family = tiny.family(bert(), max_input_tokens=9)
    found = family.encode(pair())
    assert (found.truncated_tokens > 0, len(found.ids), found.ids.count(2)) == (True, 9, 2)
    types = family.inputs([found.ids])[2]["token_type_ids"][0].tolist()
    assert types == [0] * (found.ids.index(2) + 1) + [1] * (8 - found.ids.index(2))


@pytest.mark.parametrize(
    "segments",
    [
        TEXT,
        [Segment("text", "The river"), Segment("prompt", "\n"), Segment("text", "money")],
        [Segment("context", "The river"), Segment("prompt", " "), Segment("premise", "money")],
        [Segment("premise", "The river"), Segment("prompt", " "), Segment("hypothesis", "money"), Segment("text", "coffee")],
    ],
)
def test_texts_that_are_no_pair_are_joined_as_they_are(segments: list[Segment]) -> None:
    loaded = bert()
    family = tiny.family(loaded)
    encoded = family.encode(segments)
    whole = "".join(segment.text for segment in segments)
    assert encoded.ids == loaded.tokenizer(whole)["input_ids"]
    (found,) = family.read([encoded]).logprobs([[[0], [1], [2]]])
    assert found == pytest.approx(plain_logprobs(loaded, whole), abs=1e-5)


def test_a_tokenizer_without_types_joins_by_its_own_separators_alone() -> None:
    """The shape of RoBERTa."""
    tokenizer = joining_tokenizer(types=False, seps=2)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=0, type_vocab_size=1, max_position_embeddings=80, **sizes)
    config.id2label = dict(enumerate(tiny.CLASSES))
    with seeded(0):
        loaded = Loaded(RobertaForSequenceClassification(config).eval(), tokenizer, "roberta", "encoder_classifier")
    family = tiny.family(loaded)
    encoded = family.encode(pair())
    assert encoded.ids == tokenizer(PREMISE, HYPOTHESIS)["input_ids"]
    assert family.inputs([encoded.ids])[2] == {}
    (found,) = family.read([encoded]).logprobs([[[0], [1], [2]]])
    with torch.no_grad():
        expected = loaded.model(torch.tensor([encoded.ids])).logits.log_softmax(-1)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_tokenizer_that_does_not_join_pairs_reads_what_is_written(models: dict[str, Loaded]) -> None:
    loaded = models["classifier"]
    assert tiny.family(loaded).encode(pair("[SEP]")).ids == loaded.tokenizer(f"{PREMISE}[SEP]{HYPOTHESIS}")["input_ids"]


# --- choices ----------------------------------------------------------------------------------------------------------


def question(*choices: str) -> list[Segment]:
    """A row of CommonsenseQA, as its task writes it."""
    record = {"id": "1", "question": "Where would you find a bank?", "choices": list(choices), "answer": choices[0]}
    return CommonsenseQA().parse(record).segments


def ranked(loaded: Loaded, segments: list[Segment]) -> dict[str, float]:
    """The log-probability of each choice."""
    family = tiny.family(loaded)
    encoded = family.encode(segments)
    assert isinstance(encoded, Alternatives)
    (found,) = family.read([encoded]).logprobs([[list(ids) for ids in encoded.inputs]])
    return dict(zip(encoded.texts.values(), found, strict=True))


CHOICES = ("river", "money", "coffee", "cake", "yes")


@pytest.mark.parametrize("kind", ["pairs", "plain"])
def test_a_choice_has_the_same_score_wherever_it_stands(models: dict[str, Loaded], kind: str) -> None:
    loaded = bert(("good",)) if kind == "pairs" else models["scorer"]
    orders = [*permutations(CHOICES)][::7]
    expected = ranked(loaded, question(*CHOICES))
    for order in orders:
        found = ranked(loaded, question(*order))
        assert list(found) == list(order)
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["pairs", "plain"])
def test_every_choice_is_read_in_the_frame_of_the_first(models: dict[str, Loaded], kind: str) -> None:
    loaded = bert(("good",)) if kind == "pairs" else models["scorer"]
    encoded = tiny.family(loaded).encode(question(*CHOICES))
    assert isinstance(encoded, Alternatives)
    first, frame = "Where would you find a bank?", "\nAnswer Choices:\n(a) "
    for one, choice in zip(encoded.inputs.values(), CHOICES, strict=True):
        texts = [first, frame + choice] if kind == "pairs" else [first + frame + choice]
        assert one.ids == loaded.tokenizer(*texts)["input_ids"]
        place = 2 + 2 * CHOICES.index(choice)
        assert Span(place, 0, len(choice)) in one.spans


@pytest.mark.parametrize("closing", ["", ")", ".\nyes"])
def test_what_stands_between_and_behind_the_choices_is_the_same_for_all(models: dict[str, Loaded], closing: str) -> None:
    between = [Segment("prompt", ") or ("), Segment("prompt", "or (")]
    segments = [Segment("question", "Where?"), Segment("prompt", " ("), Segment("choice", "river"), *between]
    segments += [Segment("choice", "money"), Segment("prompt", closing)]
    encoded = tiny.family(models["scorer"]).encode(segments)
    assert isinstance(encoded, Alternatives)
    for one, choice in zip(encoded.inputs.values(), ("river", "money"), strict=True):
        assert one.ids == models["scorer"].tokenizer(f"Where? ({choice}{closing}")["input_ids"]


def test_an_untrained_scorer_takes_the_first_choice_no_more_often_than_any_other() -> None:
    """The words of a random model are exchangeable, so each place is the best one in a fifth of 400 models.

    The bound is 4.5 standard deviations of that share, which chance alone exceeds in one of 150,000; and the seeds are fixed.
    """
    loaded, seeds, counts = bert(("good",)), 400, [0] * len(CHOICES)
    family = tiny.family(loaded)
    encoded = family.encode(question(*CHOICES))
    assert isinstance(encoded, Alternatives)
    for seed in range(seeds):
        with seeded(seed), torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.normal_()
        (found,) = family.read([encoded]).logprobs([[list(ids) for ids in encoded.inputs]])
        counts[found.index(max(found))] += 1
    share, most = 1 / len(CHOICES), 4.5 * math.sqrt(0.2 * 0.8 / seeds)
    assert all(abs(count / seeds - share) < most for count in counts), counts
