"""Families: texts to ids and spans and back, and log-probabilities and answers that depend on nothing but the row."""

import copy
import dataclasses
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError, RowFault
from kd.families.base import Family, Generated
from kd.families.encoder_classifier import Alternatives
from kd.families.text import Encoded
from kd.models import Loaded
from kd.rows import Segment, Span
from kd.vocabulary import train_tokenizer
from tests import tiny
from tests.tiny_known import steered


def covered(encoded: Encoded, segments: list[Segment]) -> list[str | None]:
    """The text under each token's span."""
    return [span and segments[span.segment].text[span.start : span.end] for span in encoded.spans]


QUESTION = [
    Segment("question", "Where is  the bank?"),
    Segment("prompt", "\n(a) "),
    Segment("choice", "river-side"),
    Segment("prompt", "\n(b) "),
    Segment("choice", "money"),
]
OPTIONS = ["(", "a", ")", "river", "-", "side", "(", "b", ")", "money"]


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_every_token_has_the_span_of_its_text_and_special_tokens_have_none(models: dict[str, Loaded]) -> None:
    encoded = tiny.family(models["t5"]).encode(QUESTION)
    assert encoded.tokens[:3] == ["▁Where", "▁is", "▁the"]
    assert covered(encoded, QUESTION) == ["Where", "is", "the", "bank", "?", *OPTIONS, None]
    assert [span.segment for span in encoded.spans if span] == [0] * 5 + [1] * 3 + [2] * 3 + [3] * 3 + [4]
    assert encoded.truncated_tokens == 0
    assert covered(tiny.family(models["pair"]).encode(QUESTION), QUESTION)[:: len(encoded.ids)] == [None, None]


def test_the_texts_are_joined_as_they_are(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["t5"])
    parts = [Segment("text", "mon"), Segment("text", "ey")]
    encoded = family.encode(parts)
    assert encoded.ids == family.encode([Segment("text", "money")]).ids
    assert covered(encoded, parts) == ["mon", None]


@pytest.mark.parametrize(
    ("parts", "owner"), [(["m", "oney"], 1), (["mon", "ey"], 0), (["co", "ff", "ee"], 0), (["c", "o", "ffee"], 2)]
)
def test_a_token_over_two_segments_belongs_to_the_one_with_more_of_it(
    models: dict[str, Loaded], parts: list[str], owner: int
) -> None:
    segments = [Segment("text", part) for part in parts]
    (span, _) = tiny.family(models["t5"]).encode(segments).spans
    assert span is not None
    assert (span.segment, span.start, span.end) == (owner, 0, len(parts[owner]))


def test_empty_segments_own_no_token(models: dict[str, Loaded]) -> None:
    segments = [Segment("text", ""), Segment("text", "money"), Segment("text", ""), Segment("text", " bank"), Segment("text", "")]
    spans = tiny.family(models["t5"]).encode(segments).spans
    assert [span and (span.segment, span.start, span.end) for span in spans] == [(1, 0, 5), (3, 1, 5), None]


def test_unknown_words_keep_their_span_and_special_tokens_in_the_text_have_none(models: dict[str, Loaded]) -> None:
    segments = [Segment("text", "money </s> zebra")]
    encoded = tiny.family(models["t5"]).encode(segments)
    assert "</s>" in encoded.tokens[:-1]
    assert [text for text, token in zip(covered(encoded, segments), encoded.tokens, strict=True) if token == "</s>"] == [
        None,
        None,
    ]
    assert [text for text, token in zip(covered(encoded, segments), encoded.tokens, strict=True) if token == "<unk>"][
        -1
    ] == "zebra"


@pytest.mark.parametrize("segments", [[], [Segment("text", "")], [Segment("text", " \n"), Segment("prompt", "")]])
@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "scorer"])
def test_a_row_without_text_is_an_error(models: dict[str, Loaded], kind: str, segments: list[Segment]) -> None:
    with pytest.raises(RowFault) as caught:
        tiny.family(models[kind]).encode(segments)
    assert caught.value.reason == "empty_text"


TEXT_PARTS = st.lists(st.text(st.sampled_from("abc xyz\n.é❤️👩‍🚀中文ัก́"), max_size=12), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def by_tokenizer() -> dict[str, Family]:
    specs = [
        tiny.SPEC.model_copy(update={"tokenizer": kind, "lowercase": low}) for kind, low in (("word", False), ("unigram", True))
    ]
    built = [(spec, train_tokenizer(spec, tiny.TEXTS)) for spec in specs]
    return {spec.tokenizer: tiny.family(Loaded(spec.build(tok).eval(), tok, "x"), 10_000) for spec, tok in built}


@given(parts=TEXT_PARTS)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["word", "unigram"])
def test_spans_are_in_order_inside_the_text_and_cover_what_is_visible(
    by_tokenizer: dict[str, Family], kind: str, parts: list[str]
) -> None:
    segments = [Segment("text", part) for part in parts]
    try:
        encoded = by_tokenizer[kind].encode(segments)
    except RowFault:
        assert not "".join(parts).strip()
        return
    spans = [span for span in encoded.spans if span]
    assert spans == sorted(spans, key=lambda span: (span.segment, span.start))
    assert all(0 <= span.start <= span.end <= len(parts[span.segment]) for span in spans)
    if len(parts) == 1:
        seen = {place for span in spans for place in range(span.start, span.end)}
        assert {place for place, character in enumerate(parts[0]) if visible(character)} <= seen


def visible(character: str) -> bool:
    """Neither white space nor a mark or joiner, which tokenizers may fold into the character before it."""
    return not character.isspace() and unicodedata.category(character) not in ("Mn", "Mc", "Me", "Cf")


# --- the limit --------------------------------------------------------------------------------------------------------


def test_over_the_limit_the_longest_segment_loses_its_tail_and_options_stay_whole(models: dict[str, Loaded]) -> None:
    segments = [Segment("context", "yes no yes no"), Segment("question", " 1 2 3 4 5"), *QUESTION[1:]]
    whole = tiny.family(models["t5"]).encode(segments)
    for cut, context, question in [(1, 4, 4), (2, 3, 4), (3, 3, 3), (9, 0, 0)]:
        encoded = tiny.family(models["t5"], len(whole.ids) - cut).encode(segments)
        assert encoded.truncated_tokens == cut
        kept = ["yes", "no", "yes", "no"][:context] + ["1", "2", "3", "4", "5"][:question]
        assert covered(encoded, segments) == [*kept, *OPTIONS, None]


def test_options_that_are_too_long_make_the_row_an_error(models: dict[str, Loaded]) -> None:
    fits = len(tiny.family(models["t5"]).encode(QUESTION).ids) - 5
    assert tiny.family(models["t5"], fits).encode(QUESTION).truncated_tokens == 5
    with pytest.raises(RowFault) as caught:
        tiny.family(models["t5"], fits - 1).encode(QUESTION)
    assert caught.value.reason == "too_long"


def test_a_limit_beyond_the_model_s_positions_is_refused(models: dict[str, Loaded]) -> None:
    with pytest.raises(ConfigError, match="max_input_tokens: the model has 64 positions, got 65"):
        tiny.family(models["bart"], 65)
    with pytest.raises(ConfigError, match="max_answer_tokens: the model has 64 positions, got 65"):
        tiny.family(models["pair"], 64, 65)
    tiny.family(models["t5"], 5000, 5000)
    with pytest.raises(ConfigError, match=r"max_input_tokens \+ max_answer_tokens: the model has 80 positions, got 81"):
        tiny.family(models["gpt2"], 73, 8)


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("t5", ["▁coffee", "▁cake", "</s>"]), ("bart", ["▁coffee", "▁cake", "</s>"]), ("pair", ["coffee", "cake", "[SEP]"])],
)
def test_an_answer_ends_with_end_of_sequence_and_has_no_start_token(
    models: dict[str, Loaded], kind: str, tokens: list[str]
) -> None:
    ids = tiny.family(models[kind]).encode_answer("coffee cake")
    assert models[kind].tokenizer.convert_ids_to_tokens(ids) == tokens


def test_an_answer_is_never_cut(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["t5"], max_answer_tokens=3)
    assert len(family.encode_answer("coffee cake")) == 3
    with pytest.raises(RowFault) as caught:
        family.encode_answer("the coffee cake")
    assert caught.value.reason == "too_long"


@pytest.mark.parametrize("kind", tiny.WRITERS)
def test_greedy_answers_are_those_of_transformers(models: dict[str, Loaded], kind: str) -> None:
    family = tiny.family(models[kind])
    batch = family.encode_rows([row.segments for row in tiny.examples()])
    ids, mask = family.batch([row.ids for row in batch], left=models[kind].family == "decoder_only")
    reference = models[kind].model.generate(input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=8)
    begin = ids.shape[1] if models[kind].family == "decoder_only" else 1
    for said, expected in zip(family.read(batch).generate(), reference.tolist(), strict=True):
        assert said.ids == expected[begin : begin + len(said.ids)]
        assert said.finished == (said.ids[-1] in (1, 2) and family.encode_answer("")[-1] == said.ids[-1])


def test_an_answer_that_ends_is_finished_and_unknown_words_stay_visible(models: dict[str, Loaded]) -> None:
    loaded = steered(models["t5"], [5, 2, 1])
    (said,) = tiny.family(loaded, max_answer_tokens=3).read(tiny.of_ids([3, 4, 1])).generate()
    word = models["t5"].tokenizer.convert_ids_to_tokens(5).lstrip("▁")
    assert (said.ids, said.finished) == ([5, 2, 1], True)
    assert said.text == f"{word}<unk>"
    (cut,) = tiny.family(loaded, max_answer_tokens=2).read(tiny.of_ids([3, 4, 1])).generate()
    assert (cut.ids, cut.finished) == ([5, 2], False)


def test_rows_that_end_early_wait_for_the_others(models: dict[str, Loaded]) -> None:
    loaded = steered(models["t5"], [5, 6, 1], [1])
    first, second = tiny.family(loaded).read(tiny.of_ids([3, 1], [4, 1])).generate()
    assert (first.ids, second.ids) == ([5, 6, 1], [1])
    assert (second.text, second.finished) == ("", True)


@pytest.mark.parametrize("kind", ["classifier", "pooled", "scorer"])
def test_a_classifier_s_answer_is_its_most_probable_label(models: dict[str, Loaded], kind: str) -> None:
    rows, family = tiny.rows_for(kind), tiny.family(models[kind])
    reading = family.read(family.encode_rows([row.segments for row in rows]))
    logprobs = reading.logprobs([[family.encode_answer(label) for label in row.label_set] for row in rows])
    for row, said, own in zip(rows, reading.generate(), logprobs, strict=True):
        assert said.finished
        assert said.text == row.label_set[own.index(max(own))] == family.label_of(said, row.label_set)


def test_a_label_is_recognised_by_its_tokens_or_its_text_but_never_guessed(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["t5"])
    assert family.label_of(Generated("anything", True, family.encode_answer("money")), ["river", "money"]) == "money"
    assert family.label_of(Generated("  the   RIVER. ", True, []), ["The river", "river"]) == "The river"
    assert family.label_of(Generated("The river bank", True, []), ["The river"]) is None
    assert family.label_of(Generated("yes", True, []), ["Yes", "YES"]) is None
    assert family.label_of(Generated("", True, []), ["a", "b"]) is None


# --- log-probabilities ------------------------------------------------------------------------------------------------


def plain_logprob(loaded: Loaded, ids: list[int], answer: list[int]) -> float:
    """One row, one answer, no padding, from the model's own call."""
    model = loaded.model
    with torch.no_grad():
        if loaded.family == "decoder_only":
            logits = model(input_ids=torch.tensor([[*ids, *answer[:-1]]])).logits[:, len(ids) - 1 :]
        elif loaded.family == "encoder_decoder":
            start = model.config.decoder_start_token_id
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[start, *answer[:-1]]])).logits
        else:
            logits = model(input_ids=torch.tensor([ids])).logits.unsqueeze(1)
    return logits.log_softmax(-1)[0, range(len(answer)), answer].sum().item()


@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "scorer"])
def test_log_probabilities_of_answers_are_the_sums_over_their_tokens(models: dict[str, Loaded], kind: str) -> None:
    family, rows = tiny.family(models[kind]), tiny.rows_for(kind)
    batch = family.encode_rows([row.segments for row in rows])
    answers = [[family.encode_answer(choice) for choice in row.label_set] for row in rows]
    found = family.read(batch).logprobs(answers)
    assert [len(own) for own in found] == [len(row.label_set) for row in rows]
    for encoded, own, scores in zip(batch, answers, found, strict=True):
        assert scores == pytest.approx([plain_logprob(models[kind], encoded.ids, answer) for answer in own], abs=1e-5)


def test_a_scorer_shares_out_the_probability_over_the_choices_of_a_row(models: dict[str, Loaded]) -> None:
    loaded, family, row = models["scorer"], tiny.family(models["scorer"]), tiny.example()
    encoded = family.encode(row.segments)
    assert isinstance(encoded, Alternatives)
    texts = ["Where would you find a bank? ( ) river", "Where would you find a bank? ( ) money"]
    ids = [list(encoded.inputs.values())[place].ids for place in range(2)]
    assert ids == [loaded.tokenizer(text)["input_ids"] for text in texts]
    with torch.no_grad():
        logits = [loaded.model(input_ids=torch.tensor([one.ids])).logits.item() for one in encoded.inputs.values()]
    expected = torch.tensor(logits).log_softmax(0).tolist()
    (found,) = family.read([encoded]).logprobs([[family.encode_answer(choice) for choice in row.label_set]])
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", [*tiny.WRITERS, "classifier", "pooled"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_the_input_is_read_once_for_answer_ranking_and_explanation(
    models: dict[str, Loaded], kind: str, differentiable: bool
) -> None:
    family, rows, model = tiny.family(models[kind]), tiny.rows_for(kind), models[kind].model
    batch = family.encode_rows([row.segments for row in rows])
    widths: list[int] = []
    reader = model.get_encoder() if models[kind].family == "encoder_decoder" else model
    hook = reader.register_forward_pre_hook(
        lambda _, args, given: (
            widths.append(given["attention_mask"].shape[1]) if given.get("inputs_embeds") is not None else None
        ),
        with_kwargs=True,
    )
    try:
        reading = family.read(batch, differentiable)
        reading.generate()
        reading.logprobs([[family.encode_answer(label) for label in row.label_set] for row in rows])
        what = reading.explained([family.encode_answer(row.target or row.label_set[0]) for row in rows])
        with torch.set_grad_enabled(differentiable):
            numbers = what.forward(what.embeds, what.rows)
        if differentiable:
            assert torch.autograd.grad(numbers.sum(), [what.embeds])[0].abs().sum() > 0
        assert widths == [max(len(row.ids) for row in batch)]
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", [*tiny.WRITERS, "classifier", "pooled"])
def test_sequence_nll_is_the_summed_loss_of_each_sequence_and_trains(models: dict[str, Loaded], kind: str) -> None:
    family, model = tiny.family(models[kind]), models[kind].model
    batch = [family.encode(row.segments).ids for row in tiny.rows_for(kind)[:3]]
    answers = ("river", "coffee cake", "money in the bank") if kind in tiny.WRITERS else tiny.CLASSES
    targets = [family.encode_answer(text) for text in answers]
    nll = family.sequence_nll(model, batch, targets)
    expected = [-plain_logprob(models[kind], ids, target) for ids, target in zip(batch, targets, strict=True)]
    assert nll.tolist() == pytest.approx(expected, abs=1e-4)
    assert nll.dtype == torch.float32
    (gradient,) = torch.autograd.grad(nll.sum(), [model.get_input_embeddings().weight])
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", [*tiny.WRITERS, "classifier", "pooled"])
def test_what_is_explained_is_float32_whatever_the_weights_are(models: dict[str, Loaded], kind: str) -> None:
    loaded = dataclasses.replace(models[kind], model=copy.deepcopy(models[kind].model).to(torch.bfloat16))
    family, row = tiny.family(loaded), tiny.rows_for(kind)[0]
    what = family.read([family.encode(row.segments)], differentiable=True).explained([family.encode_answer(row.target or "")])
    number = what.forward(what.embeds, what.rows)
    assert what.embeds.dtype == number.dtype == torch.float32
    (gradient,) = torch.autograd.grad(number.sum(), [what.embeds])
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()


def test_the_blank_input_keeps_special_tokens_only(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["pair"])
    encoded = family.encode([Segment("text", "river bank")])
    assert family.blanked([encoded]) == [[1, 0, 0, 2]]
    blank = family.read([encoded]).explained([[2]]).blank()
    assert torch.equal(blank, family.embed(torch.tensor([[1, 0, 0, 2]])))


def test_a_model_that_does_not_say_how_answers_end_is_refused(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)
    loaded.model.config.eos_token_id = loaded.model.generation_config.eos_token_id = None
    with pytest.raises(ConfigError, match="eos_token_id"):
        tiny.family(loaded)


# --- causal models ----------------------------------------------------------------------------------------------------


def test_a_causal_model_reads_the_text_and_a_lead_without_span(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["llama"])
    encoded = family.encode([Segment("question", "Where is the river ?")])
    assert encoded.spans[:5] == [Span(0, 0, 5), Span(0, 6, 8), Span(0, 9, 12), Span(0, 13, 18), Span(0, 19, 20)]
    assert encoded.spans[5:] == [None] * (len(encoded.ids) - 5)
    assert len(encoded.ids) > 5
    assert encoded.ids[-1] != models["llama"].tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_side_on_which_a_tokenizer_pads_changes_nothing(models: dict[str, Loaded], kind: str) -> None:
    found = []
    for side in ("left", "right"):
        tokenizer = copy.deepcopy(models[kind].tokenizer)
        tokenizer.padding_side = side
        family = tiny.family(dataclasses.replace(models[kind], tokenizer=tokenizer))
        reading = family.read(family.encode_rows([row.segments for row in tiny.examples()]))
        found.append((reading.generate(), reading.logprobs([[family.encode_answer("money")] for _ in tiny.examples()])))
    assert found[0] == found[1]


TEMPLATE = (
    "{% for message in messages %}yes: {{ message.content | trim }} no{% endfor %} {% if add_generation_prompt %}1{% endif %}"
)


def test_a_chat_template_surrounds_the_text_and_has_no_spans(models: dict[str, Loaded]) -> None:
    tokenizer = copy.deepcopy(models["llama"].tokenizer)
    tokenizer.chat_template = TEMPLATE
    family = tiny.family(dataclasses.replace(models["llama"], tokenizer=tokenizer, chat_template=True))
    segments = [Segment("question", " the river "), Segment("choice", "bank ")]
    encoded = family.encode(segments)
    assert covered(encoded, segments) == [None, None, "the", "river", "bank", None, None]
    assert encoded.tokens[0] == "▁yes"
    assert encoded.tokens[-1] == "▁1"


def test_a_chat_template_that_is_not_there_is_an_error(models: dict[str, Loaded]) -> None:
    with pytest.raises(ConfigError, match="chat_template = true, but its tokenizer has no chat template"):
        tiny.family(dataclasses.replace(models["llama"], chat_template=True))


# --- classifiers ------------------------------------------------------------------------------------------------------


def test_a_classifier_with_fixed_classes_refuses_rows_with_choices_of_their_own(models: dict[str, Loaded]) -> None:
    with pytest.raises(ConfigError, match=r"fixed classes yes, no, maybe.*one logit"):
        tiny.family(models["classifier"]).encode_rows([row.segments for row in tiny.examples()])


def test_an_unknown_class_is_the_fault_of_its_row(models: dict[str, Loaded]) -> None:
    assert tiny.family(models["classifier"]).encode_answer(" No") == [1]
    with pytest.raises(RowFault) as caught:
        tiny.family(models["classifier"]).encode_answer("perhaps")
    assert (caught.value.reason, caught.value.detail) == (
        "unknown_label",
        "'perhaps' is no class of bert@0; it has yes, no, maybe",
    )


def test_a_scorer_needs_choices_and_does_not_train(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["scorer"])
    with pytest.raises(RowFault, match="scores the choices of a row, and this one has none"):
        family.encode([Segment("question", "Where?")])
    with pytest.raises(ConfigError, match="one choice at a time"):
        family.sequence_nll(family.model, [[1, 2]], [[0]])
