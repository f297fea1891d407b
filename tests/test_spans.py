"""Words of any script, and token scores that become word scores without loss."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.rows import Segment, Span
from kd.spans import _icu, check_segmenter, is_unspaced, overlap, pool, segmenter, words

TEXTS = st.text(st.sampled_from("ab 'é-.,\u0301日本テ👩🏽\u200d🚀!\n3"), max_size=30)


def texts_of(text: str) -> list[str]:
    return [text[word.start : word.end] for word in words([Segment("text", text)])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t", []),
        ("The cat sat.", ["The", "cat", "sat", "."]),
        ("A man’s well-being", ["A", "man’s", "well-being"]),
        ("84.0 or 3,000.", ["84.0", "or", "3,000", "."]),
        ("(e.g. x-)", ["(", "e", ".", "g", ".", "x", "-", ")"]),
        ("cafe\u0301 naïve", ["cafe\u0301", "naïve"]),
        ("日本語テスト", ["日", "本", "語", "テスト"]),
        ("go 👩🏽\u200d🚀!", ["go", "👩🏽\u200d🚀", "!"]),
    ],
)
def test_the_words_of_a_text(text: str, expected: list[str]) -> None:
    assert texts_of(text) == expected


@given(st.lists(TEXTS, max_size=4))
def test_words_cover_every_visible_character_once_and_in_order(texts: list[str]) -> None:
    segments = [Segment("text", text) for text in texts]
    found = words(segments)
    assert found == sorted(found, key=lambda word: (word.segment, word.start))
    for index, text in enumerate(texts):
        covered = [0] * len(text)
        for word in found:
            for position in range(word.start, word.end) if word.segment == index else ():
                covered[position] += 1
        assert max(covered, default=0) <= 1
        assert all(
            count or text[position].isspace() or not text[position].isprintable() for position, count in enumerate(covered)
        )


def test_roles_select_segments_but_keep_their_numbers() -> None:
    segments = [Segment("prompt", "Q:"), Segment("question", "where"), Segment("choice", "home")]
    assert words(segments, ["question", "choice"]) == [Span(1, 0, 5), Span(2, 0, 4)]


def test_a_token_inside_a_word_gives_it_everything_and_one_across_two_is_shared_by_length() -> None:
    onto = [Span(0, 0, 4), Span(0, 5, 7)]
    pooled, unassigned = pool([Span(0, 0, 2), Span(0, 2, 4), Span(0, 3, 7)], [1.0, 2.0, 9.0], onto)
    assert pooled == [1.0 + 2.0 + 3.0, 6.0]
    assert unassigned == 0.0


def test_a_token_of_white_space_or_of_nothing_is_unassigned() -> None:
    pooled, unassigned = pool([Span(0, 4, 5), Span(0, 2, 2), Span(1, 0, 3)], [1.0, 2.0, 4.0], [Span(0, 0, 4), Span(0, 5, 7)])
    assert (pooled, unassigned) == ([0.0, 0.0], 7.0)


def test_the_mean_weighs_a_piece_by_its_share_and_the_largest_keeps_its_sign() -> None:
    onto, tokens, scores = [Span(0, 0, 4), Span(0, 5, 7)], [Span(0, 0, 2), Span(0, 2, 4), Span(0, 3, 7)], [1.0, -20.0, 9.0]
    assert pool(tokens, scores, onto, "mean") == ([(1.0 - 20.0 + 9.0 / 3) / (2 + 1 / 3), 9.0], 0.0)
    assert pool(tokens, scores, onto, "max") == ([-20.0, 9.0], 0.0)
    assert pool([], [], onto, "mean") == pool([], [], onto, "max") == ([0.0, 0.0], 0.0)
    assert pool([Span(0, 0, 2), Span(0, 2, 4)], [-2.0, 2.0], onto, "max")[0][0] == -2.0, "the first of equals"


Cut = tuple[list[Span], list[float], list[Span]]


@st.composite
def cut_texts(draw: st.DrawFn) -> Cut:
    """Texts cut into tokens anywhere, a score for each, and the words."""
    texts, tokens = draw(st.lists(TEXTS, min_size=1, max_size=3)), []
    for index, text in enumerate(texts):
        cuts = sorted(draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
        tokens += [Span(index, start, end) for start, end in zip(cuts[:-1], cuts[1:], strict=True)]
    scores = draw(st.lists(st.floats(-100, 100), min_size=len(tokens), max_size=len(tokens)))
    return tokens, scores, words([Segment("text", text) for text in texts])


@given(cut_texts())
def test_the_sum_conserves_mass(cut: Cut) -> None:
    tokens, scores, onto = cut
    pooled, unassigned = pool(tokens, scores, onto)
    assert sum(pooled) + unassigned == pytest.approx(sum(scores), abs=1e-9)
    assert pooled == pytest.approx([_share(word, tokens, scores, onto) for word in onto], abs=1e-9)


@given(cut_texts())
def test_the_mean_times_the_number_of_pieces_conserves_mass_and_lies_between_them(cut: Cut) -> None:
    tokens, scores, onto = cut
    pooled, unassigned = pool(tokens, scores, onto, "mean")
    pieces = [_share(word, tokens, [1.0] * len(tokens), onto) for word in onto]
    mass = sum(mean * count for mean, count in zip(pooled, pieces, strict=True))
    assert mass + unassigned == pytest.approx(sum(scores), abs=1e-9)
    for word, mean in zip(onto, pooled, strict=True):
        own = [score for token, score in zip(tokens, scores, strict=True) if overlap(token, word)]
        assert min(own) - 1e-9 <= mean <= max(own) + 1e-9


@given(cut_texts())
def test_the_largest_is_a_piece_s_own_score(cut: Cut) -> None:
    tokens, scores, onto = cut
    for word, largest in zip(onto, pool(tokens, scores, onto, "max")[0], strict=True):
        own = [score for token, score in zip(tokens, scores, strict=True) if overlap(token, word)]
        assert largest in own
        assert abs(largest) == max(map(abs, own))


def _share(word: Span, tokens: list[Span], scores: list[float], onto: list[Span]) -> float:
    """The definition, written the slow way."""
    total = 0.0
    for token, score in zip(tokens, scores, strict=True):
        touched = sum(overlap(token, other) for other in onto)
        total += score * overlap(token, word) / touched if touched else 0.0
    return total


# --- scripts without spaces between words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ฉันรักภาษาไทยและอยากเรียนทุกวัน", ["ฉัน", "รัก", "ภาษา", "ไทย", "และ", "อยาก", "เรียน", "ทุก", "วัน"]),
        ("ខ្ញុំស្រលាញ់ភាសាខ្មែរ", ["ខ្ញុំ", "ស្រលាញ់", "ភាសាខ្មែរ"]),
        ("ຂ້ອຍຮັກພາສາລາວ", ["ຂ້ອຍ", "ຮັກ", "ພາສາ", "ລາວ"]),
        ("မြန်မာစာကိုချစ်တယ်။", ["မြန်မာ", "စာ", "ကို", "ချစ်", "တယ်", "။"]),
        ("🚀iPhoneภาษาไทย 84.0!", ["🚀", "iPhone", "ภาษา", "ไทย", "84.0", "!"]),
    ],
    ids=["Thai", "Khmer", "Lao", "Burmese", "mixed"],
)
def test_the_words_of_scripts_without_spaces_are_those_of_icu_s_dictionaries(text: str, expected: list[str]) -> None:
    assert texts_of(text) == expected
    assert is_unspaced(text)
    assert segmenter().startswith("ICU ")


@given(st.text(st.sampled_from("ฉันรกภาษไทย\u0e49\u0301๑๒ລາວမြန်ខ្ញុំaé日 🚀.,"), max_size=40))
def test_no_character_of_them_is_lost_and_none_is_counted_twice(text: str) -> None:
    found = words([Segment("text", text)])
    assert all(one.end <= other.start and one.start < one.end for one, other in zip(found, found[1:], strict=False))
    assert "".join(texts_of(text)) == "".join(text.split())


def test_without_a_segmenter_what_stands_together_is_one_word_and_a_worker_that_differs_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = segmenter()
    check_segmenter(planned)
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)  # as where it is not installed
    _icu.cache_clear()
    try:
        assert texts_of("iPhoneภาษาไทย ไทย") == ["iPhone", "ภาษาไทย", "ไทย"]
        assert (segmenter(), is_unspaced("ภาษาไทย"), is_unspaced("日本 cafe\u0301")) == ("none", True, False)
        with pytest.raises(ConfigError, match=f"expected the segmenter {planned}, as on the driver, got none on this worker"):
            check_segmenter(planned)
    finally:
        _icu.cache_clear()
