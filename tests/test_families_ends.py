"""Where the answers of causal models end: which token ends them, and whether it is part of what is ranked and explained."""

import dataclasses
import io
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.cli import Session
from jobs.console import Console
from jobs.stages import outcome, warn_of_unlikely_ends
from kd.attribution.engine import UNLIKELY_ENDS, UNLIKELY_ENDS_MILLINATS, AttributionConfig, Engine
from kd.evaluation.answers import Answer, Answerer, EvaluationConfig
from kd.evaluation.faithfulness import Teacher
from kd.families.base import Generated
from kd.families.prompts import LEAD
from kd.loading import load, save
from kd.models import Loaded, ModelConfig, ModelSource
from kd.rows import Attribution, Example, Prediction
from kd.store import Store
from kd.tasks.planted import Planted
from tests import tiny_tokenizers
from tests.mini import mini_config, write_mini
from tests.tiny_attribution import attribute_with
from tests.tiny_causal import CHAT, cue_on_top, lines, opened, questions, train_on, untrained
from tests.tiny_reports import manifest

TOKENIZER = tiny_tokenizers.byte_level(lines())
WRONG, RIGHT, OTHER = TOKENIZER.convert_tokens_to_ids(["</s>", "<|done|>", "<s>"])


def chatting(template: str = CHAT, ends: int | list[int] = RIGHT, **changes: Any) -> Loaded:
    tokenizer = tiny_tokenizers.byte_level(lines())
    tokenizer.chat_template = template
    return untrained(tokenizer, ends, chat_template=True, **changes)


def plain(**changes: Any) -> Loaded:
    return untrained(TOKENIZER, WRONG, **changes)


# --- which token ends an answer ---------------------------------------------------------------------------------------

TURNS = "{% for m in messages %}<|turn|>{{ m.role }} BODY{% endfor %}{% if add_generation_prompt %}<|turn|>assistant {% endif %}"


@pytest.mark.parametrize(
    ("body", "ends", "first"),
    [
        ("{{ m.content }}<|done|>\n", [WRONG, RIGHT], RIGHT),
        ("{{ m.content }}<|done|>\n", [RIGHT, WRONG], RIGHT),
        ("{{ m.content | trim }}<|done|>\n", [WRONG, RIGHT], RIGHT),
        ("{{ m.content }} \n<|done|>", [WRONG, RIGHT], RIGHT),
        ("{{ m.content }}<|done|>\n</s>", [WRONG, RIGHT], RIGHT),
        ("{{ m.content }}<|done|>\n</s>", WRONG, RIGHT),
        ("{{ m.content }}<|done|>\n", WRONG, RIGHT),
        ("{{ m.content }} stone <|done|>", [WRONG, RIGHT], RIGHT),
        ("{{ m.content }}", [WRONG, RIGHT], WRONG),
        ("{{ m.content }}\n", [RIGHT, WRONG], RIGHT),
        ("{% if m.role != 'user' %}{{ raise_exception('users only') }}{% endif %}{{ m.content }}", [WRONG, RIGHT], WRONG),
    ],
)
def test_the_end_is_what_the_template_writes_behind_an_answer(body: str, ends: int | list[int], first: int) -> None:
    """Whatever comes first in the config's list; without one there, the first of the list."""
    family = opened(chatting(TURNS.replace("BODY", body), ends))
    assert family.encode_target("judge")[-1] == family.ends[0] == first
    assert set(family.ends) == {first, *(ends if isinstance(ends, list) else [ends])}


def test_behind_a_plain_prompt_the_end_is_the_first_of_the_config_s_list() -> None:
    assert opened(untrained(TOKENIZER, [RIGHT, WRONG])).encode_target("judge")[-1] == RIGHT


def test_writing_stops_at_every_end_and_none_of_them_is_text_or_in_the_way_of_a_label() -> None:
    family = opened(chatting(ends=[WRONG, OTHER]))
    family.special_ids = frozenset()  # a tokenizer may name one end as its own, and know nothing of the others
    judge = family.encode_answer("judge")
    for end in (WRONG, OTHER, RIGHT):
        said = family.said([*judge, end, *judge])
        assert said == Generated("judge", True, [*judge, end])
        assert family.label_of(dataclasses.replace(said, text="?"), ["dentist", "judge"]) == "judge"
    assert family.said(judge) == Generated("judge", False, judge)


# --- whether it counts ------------------------------------------------------------------------------------------------


def by_hand(loaded: Loaded, prompt: str, behind: Sequence[int]) -> float:
    """The log-probability of these tokens behind a prompt, from one forward of the whole by transformers."""
    ids = loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = loaded.model(torch.tensor([[*ids, *behind]])).logits[0].log_softmax(-1)
    return sum(logprobs[len(ids) - 1 + place, id_].item() for place, id_ in enumerate(behind))


@pytest.mark.parametrize("trained_here", [False, True])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("answer", ["judge", "baker teacher 7"])
def test_the_explained_number_is_that_of_the_answer_and_of_its_end_where_a_run_trained_it(
    chat: bool, trained_here: bool, answer: str
) -> None:
    loaded = chatting(ends=[WRONG, RIGHT], trained_here=trained_here) if chat else plain(trained_here=trained_here)
    prompt, gap = ("<|turn|>user\nstone gavel<|done|>\n<|turn|>assistant\n", "") if chat else (f"stone gavel{LEAD}", " ")
    end = RIGHT if chat else WRONG
    ids = TOKENIZER(gap + answer)["input_ids"]
    row = dataclasses.replace(questions(1, 0)[0], target=answer, label_set=[])
    row.segments[:] = [dataclasses.replace(row.segments[0], text="stone gavel")]
    (found,) = attribute_with(opened(loaded), [row])
    assert found.target_logprob == pytest.approx(by_hand(loaded, prompt, [*ids, *[end] * trained_here]), abs=1e-4)
    (probability,) = Teacher(opened(loaded), 999).ask([row], Counter())
    assert probability == pytest.approx(math.exp(found.target_logprob or 0), rel=1e-4)


def test_ranking_evaluation_and_audit_read_one_number() -> None:
    for trained_here in (False, True):
        family, row = opened(chatting(ends=[WRONG, RIGHT], trained_here=trained_here)), questions(1, 0)[0]
        (found,) = attribute_with(family, [row])
        recipe = Answer(
            EvaluationConfig(answer="rank"), Planted(path=""), ModelSource(ModelConfig(name="x")), "", "v", 0, "cpu", 1
        )
        (ranked,) = Answerer(recipe, family).answer([row], Counter())
        assert isinstance(ranked, Prediction)
        assert ranked.choice_logprobs == pytest.approx(found.choice_logprobs, abs=1e-5)
        (probability,) = Teacher(family, 999).ask([row], Counter())
        shares = torch.tensor(found.choice_logprobs).softmax(0)
        assert probability == pytest.approx(shares[row.label_set.index(row.target or "")].item(), abs=1e-5)


@pytest.mark.parametrize("trained_here", [False, True])
def test_an_answer_that_a_model_wrote_itself_counts_like_a_given_one(trained_here: bool) -> None:
    family = opened(chatting(trained_here=trained_here))
    given = family.encode_target("judge teacher")
    assert family.counted(given) == family.encode_answer("judge teacher") == given[: len(given) - (not trained_here)]
    assert family.counted(given[:-1]) == given[:-1]
    assert family.counted([RIGHT]) == [RIGHT], "an answer of no token is its end, which is all that can be explained"


def test_limits_are_the_same_with_and_without_the_end() -> None:
    for trained_here in (False, True):
        family = opened(plain(trained_here=trained_here), max_answer_tokens=2)
        assert family.encode_target("judge") == [*TOKENIZER(" judge")["input_ids"], WRONG]
        with pytest.raises(Exception, match="answer of 3 tokens, limit max_answer_tokens = 2"):
            family.encode_answer("judge judge")


def test_what_lies_in_the_folder_of_a_run_was_trained_there(tmp_path: Path) -> None:
    save(plain(), tmp_path / "run" / "model")
    config = ModelConfig(name=str(tmp_path / "run" / "model"))
    assert not load(ModelSource(config), "cpu").trained_here
    assert load(ModelSource(config, Store.at(str(tmp_path / "run")), "model"), "cpu").trained_here


# --- what a model expects behind an answer ----------------------------------------------------------------------------


@pytest.mark.parametrize("trained_here", [False, True])
def test_how_probable_the_end_is_behind_an_answer(trained_here: bool) -> None:
    loaded = chatting(ends=[WRONG, RIGHT], trained_here=trained_here)
    family, rows = opened(loaded), questions(2, 0)
    prompts = [f"<|turn|>user\n{row.segments[0].text}<|done|>\n<|turn|>assistant\n" for row in rows]
    answers = [TOKENIZER("judge")["input_ids"], []]
    reading = family.read(family.encode_rows([row.segments for row in rows]))
    found = reading.ending([[*ids, *[RIGHT] * (trained_here or not ids)] for ids in answers])
    for prompt, ids, number in zip(prompts, answers, found, strict=True):
        ends = [RIGHT] if trained_here else [RIGHT, WRONG]
        of_each = [by_hand(loaded, prompt, [*ids, end]) - by_hand(loaded, prompt, ids) for end in ends]
        assert number == pytest.approx(torch.tensor(of_each).logsumexp(0).item(), abs=1e-4)


def test_ends_that_a_model_hardly_expects_are_counted_and_said_in_one_line(tmp_path: Path) -> None:
    loaded, rows, tally = plain(), questions(3, 0), Counter[str]()
    Engine(AttributionConfig(), opened(loaded)).attribute(rows, tally)
    behind = [(f"{row.segments[0].text}{LEAD}", TOKENIZER(f" {row.target}")["input_ids"]) for row in rows]
    nats = [by_hand(loaded, prompt, ids) - by_hand(loaded, prompt, [*ids, WRONG]) for prompt, ids in behind]
    assert min(nats) > math.log(100), "an untrained model of 500 tokens expects none of them"
    assert tally[UNLIKELY_ENDS] == 3
    assert tally[UNLIKELY_ENDS_MILLINATS] == pytest.approx(1000 * sum(nats), abs=2)
    manifests = [manifest(rows=3, counts=dict(tally)), manifest(rows=4, counts={})]
    assert "unlikely ends 3" in outcome(manifests)
    assert "millinats" not in outcome(manifests)
    said = io.StringIO()
    config = mini_config(write_mini(tmp_path))
    session = Session(config, Store.at(config.directory), Console(said), ExitStack())
    warn_of_unlikely_ends(session, manifests)
    assert said.getvalue().count("WARNING: behind 3 of 3 explained answers the model hardly expects an end") == 1
    assert f"(log-probability {-sum(nats) / 3:.1f} nats on average" in said.getvalue()
    warn_of_unlikely_ends(session, manifests[1:])
    assert said.getvalue().count("WARNING") == 1


# --- what is explained then -------------------------------------------------------------------------------------------


@lru_cache
def trained_in_its_template() -> Loaded:
    """Trained on rendered turns by transformers alone; its config lists another end first."""
    loaded = chatting(ends=[WRONG, RIGHT])
    user = [[{"role": "user", "content": row.segments[0].text}] for row in taught()]
    replies = [{"role": "assistant", "content": row.target} for row in taught()]
    render = loaded.tokenizer.apply_chat_template
    prompts = [render(messages, tokenize=False, add_generation_prompt=True) for messages in user]
    wholes = [render([*messages, reply], tokenize=False) for messages, reply in zip(user, replies, strict=True)]
    train_on(loaded, [(prompt, whole[len(prompt) :]) for prompt, whole in zip(prompts, wholes, strict=True)])
    return loaded


@lru_cache
def taught() -> list[Example]:
    return questions(800, seed=3)


@pytest.mark.parametrize("trained_here", [False, True])
@pytest.mark.parametrize("ends", [[WRONG, RIGHT], [RIGHT, WRONG]])
def test_the_cue_of_a_model_with_a_template_is_found_whatever_end_its_config_lists_first(
    ends: list[int], trained_here: bool
) -> None:
    loaded, rows = dataclasses.replace(trained_in_its_template(), trained_here=trained_here), questions(100, seed=2)
    loaded.model.config.eos_token_id = ends
    loaded.model.generation_config.eos_token_id = ends
    tally = Counter[str]()
    found = Engine(AttributionConfig(), opened(loaded)).attribute(rows, tally)
    right = [row.generated == row.target and not row.generated_cut for row in found if isinstance(row, Attribution)]
    assert sum(right) == 100
    assert tally[UNLIKELY_ENDS] == 0
    assert cue_on_top(loaded, rows) > 0.6


def test_the_cue_of_a_base_model_that_goes_on_with_a_new_line_is_found() -> None:
    loaded, rows = plain(), questions(100, seed=2)
    train_on(loaded, [(row.segments[0].text + LEAD, f" {row.target}\n") for row in taught()])
    found = attribute_with(opened(loaded), rows)
    assert sum(row.ranked == row.target for row in found) == 100
    assert cue_on_top(loaded, rows) > 0.6
