"""The family: texts to ids and spans and back, and log-probabilities and answers that depend on nothing but the row."""

import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError, RowFault
from kd.families.encoder_decoder import Encoded, EncoderDecoder
from kd.models import Loaded, train_tokenizer
from kd.rows import Segment
from tests import tiny

KINDS = ["t5", "bart", "pair"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    return tiny.tiny_models(tmp_path_factory.mktemp("run"))


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
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_text_is_an_error(models: dict[str, Loaded], kind: str, segments: list[Segment]) -> None:
    with pytest.raises(RowFault) as caught:
        tiny.family(models[kind]).encode(segments)
    assert caught.value.reason == "empty_text"


TEXT_PARTS = st.lists(st.text(st.sampled_from("abc xyz\n.é❤️👩‍🚀中文ัก́"), max_size=12), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def by_tokenizer() -> dict[str, EncoderDecoder]:
    specs = [
        tiny.SPEC.model_copy(update={"tokenizer": kind, "lowercase": low}) for kind, low in (("word", False), ("unigram", True))
    ]
    built = [(spec, train_tokenizer(spec, tiny.TEXTS)) for spec in specs]
    return {spec.tokenizer: tiny.family(Loaded(spec.build(tok).eval(), tok, "x"), 10_000) for spec, tok in built}


@given(parts=TEXT_PARTS)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["word", "unigram"])
def test_spans_are_in_order_inside_the_text_and_cover_what_is_visible(
    by_tokenizer: dict[str, EncoderDecoder], kind: str, parts: list[str]
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
        EncoderDecoder(models["bart"], 65, 8)
    with pytest.raises(ConfigError, match="max_answer_tokens: the model has 64 positions, got 65"):
        EncoderDecoder(models["pair"], 64, 65)
    EncoderDecoder(models["t5"], 5000, 5000)


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


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_transformers(models: dict[str, Loaded], kind: str) -> None:
    family = tiny.family(models[kind])
    batch = [family.encode(row.segments).ids for row in tiny.examples()]
    ids, mask = family.batch(batch)
    reference = models[kind].model.generate(input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=8)
    for said, expected in zip(family.generate(batch), reference.tolist(), strict=True):
        assert said.ids == expected[1 : 1 + len(said.ids)]
        assert said.finished == (said.ids[-1] in (1, 2) and family.encode_answer("")[-1] == said.ids[-1])


def test_an_answer_that_ends_is_finished_and_unknown_words_stay_visible(models: dict[str, Loaded]) -> None:
    family = tiny.family(tiny.steered(models["t5"], [5, 2, 1]), max_answer_tokens=3)
    (said,) = family.generate([[3, 4, 1]])
    word = models["t5"].tokenizer.convert_ids_to_tokens(5).lstrip("▁")
    assert (said.ids, said.finished) == ([5, 2, 1], True)
    assert said.text == f"{word}<unk>"
    (cut,) = tiny.family(tiny.steered(models["t5"], [5, 2, 1]), max_answer_tokens=2).generate([[3, 4, 1]])
    assert (cut.ids, cut.finished) == ([5, 2], False)


def test_rows_that_end_early_wait_for_the_others(models: dict[str, Loaded]) -> None:
    loaded = tiny.steered(models["t5"], [5, 6, 1], [1])
    first, second = tiny.family(loaded).generate([[3, 1], [4, 1]])
    assert (first.ids, second.ids) == ([5, 6, 1], [1])
    assert (second.text, second.finished) == ("", True)


# --- log-probabilities ------------------------------------------------------------------------------------------------


def plain_logprob(loaded: Loaded, ids: list[int], answer: list[int]) -> float:
    """One row, one answer, no padding, from the model's own call."""
    start = loaded.model.config.decoder_start_token_id
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[start, *answer[:-1]]])).logits
    return logits.log_softmax(-1)[0, range(len(answer)), answer].sum().item()


@pytest.mark.parametrize("kind", KINDS)
def test_choice_log_probabilities_are_the_sums_over_each_answer(models: dict[str, Loaded], kind: str) -> None:
    family = tiny.family(models[kind])
    batch = [family.encode(row.segments).ids for row in tiny.examples()]
    answers = [[family.encode_answer(choice) for choice in row.label_set] for row in tiny.examples()]
    found = family.choice_logprobs(batch, answers)
    assert [len(own) for own in found] == [3, 3, 2, 3, 0, 4]
    for ids, own, scores in zip(batch, answers, found, strict=True):
        assert scores == pytest.approx([plain_logprob(models[kind], ids, answer) for answer in own], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_runs_once_for_answer_and_ranking(models: dict[str, Loaded], kind: str) -> None:
    family = tiny.family(models[kind])
    batch = [family.encode(row.segments).ids for row in tiny.examples()]
    answers = [[family.encode_answer("river"), family.encode_answer("coffee cake")] for _ in batch]
    rows_seen: list[int] = []
    encoder = models[kind].model.get_encoder()
    hook = encoder.register_forward_hook(lambda module, given, out: rows_seen.append(len(out.last_hidden_state)))
    try:
        states = family.encode_states(*family.batch(batch))
        generated, scores = family.generate(batch, states), family.choice_logprobs(batch, answers, states)
        assert rows_seen == [len(batch)]
        assert (generated, scores) == (family.generate(batch), family.choice_logprobs(batch, answers))
        assert rows_seen == [len(batch)] * 3
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_sequence_nll_is_the_summed_loss_of_each_sequence_and_trains(models: dict[str, Loaded], kind: str) -> None:
    family, model = tiny.family(models[kind]), models[kind].model
    batch = [family.encode(row.segments).ids for row in tiny.examples()[:3]]
    targets = [family.encode_answer(text) for text in ("river", "coffee cake", "money in the bank")]
    nll = family.sequence_nll(model, batch, targets)
    expected = [-plain_logprob(models[kind], ids, target) for ids, target in zip(batch, targets, strict=True)]
    assert nll.tolist() == pytest.approx(expected, abs=1e-4)
    assert nll.dtype == torch.float32
    (gradient,) = torch.autograd.grad(nll.sum(), [model.get_input_embeddings().weight])
    assert gradient.abs().sum() > 0


def test_log_probabilities_are_float32_whatever_the_weights_are(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)
    loaded.model.to(torch.bfloat16)
    family = tiny.family(loaded)
    ids, mask = family.batch([family.encode(QUESTION).ids])
    embeds = family.embed(ids).requires_grad_()
    assert embeds.dtype == torch.float32
    logprob = family.target_logprob(embeds, mask, [family.encode_answer("money")])
    assert logprob.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logprob.sum(), [embeds])
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()


def test_the_blank_input_keeps_special_tokens_only(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["pair"])
    assert family.blank([family.encode([Segment("text", "river bank")])]).tolist() == [[1, 0, 0, 2]]


def test_a_model_that_does_not_say_how_answers_end_is_refused(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)
    loaded.model.config.eos_token_id = loaded.model.generation_config.eos_token_id = None
    with pytest.raises(ConfigError, match="eos_token_id"):
        tiny.family(loaded)
