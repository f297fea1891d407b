"""A small Llama that learns in seconds which answer a cue among other words asks for, in a chat template or behind a lead."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kd.families.base import Family
from kd.families.opening import open_family
from kd.families.prompts import LEAD
from kd.loading import seeded
from kd.models import Loaded, ModelConfig
from kd.rows import Attribution, Example, Segment, Span
from kd.spans import pool, words
from tests.tiny_attribution import attribute_with

CUES = {"gavel": "judge", "drill": "dentist", "yarn": "tailor", "wrench": "plumber", "flour": "baker", "chalk": "teacher"}
OTHERS = ["stone", "sofa", "fence", "parcel", "candle", "bucket", "ladder", "window"]
CHAT = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""A template in which a turn ends with a token of its own, as those of Llama 3, Gemma and Qwen do."""

STEPS, ROWS = 150, 32


def question(draw: random.Random, uid: str) -> Example:
    """A row with one cue among five other words, each of which may stand there twice."""
    cue = draw.choice(list(CUES))
    things = [cue, *draw.choices(OTHERS, k=5)]
    draw.shuffle(things)
    return Example(
        uid=uid,
        error=None,
        task="tiny",
        split="train",
        segments=[Segment("question", " ".join(things))],
        target=CUES[cue],
        label_set=list(CUES.values()),
        evidence=[],
        llm_rationale=None,
        llm_label=None,
    )


def questions(count: int, seed: int) -> list[Example]:
    draw = random.Random(seed)
    return [question(draw, f"{seed}/{place}") for place in range(count)]


def lines() -> list[str]:
    """Text to train a tokenizer on: every word becomes one token."""
    return [f"{cue} {' '.join(OTHERS)}{LEAD} {answer}\nuser assistant\n" for cue, answer in CUES.items()] * 9


def untrained(tokenizer: PreTrainedTokenizerFast, ends: int | list[int], **changes: Any) -> Loaded:
    """A new model for a tokenizer, whose config names these tokens as ends of a sequence."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.02, **sizes, **special)
    with seeded(0):
        model = LlamaForCausalLM(config).eval()
    return Loaded(model, tokenizer, "llama@tiny", "decoder_only", **changes)


def opened(loaded: Loaded, **limits: Any) -> Family:
    limits = {"max_input_tokens": 64, "max_answer_tokens": 8} | limits
    return open_family(loaded, ModelConfig(name="tiny", **limits))


def train_on(loaded: Loaded, texts: Sequence[tuple[str, str]]) -> None:
    """Train on prompts and what goes on behind them, both tokenised by the tokenizer alone; nothing of this is ours."""
    tokenizer, model = loaded.tokenizer, loaded.model
    special = not loaded.chat_template
    sequences = [tokenizer(prompt + behind, add_special_tokens=special)["input_ids"] for prompt, behind in texts]
    learnt = [len(tokenizer(prompt, add_special_tokens=special)["input_ids"]) for prompt, _ in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    draw = random.Random(0)
    model.train()
    for _ in range(STEPS):
        batch = draw.sample(range(len(texts)), ROWS)
        width = max(len(sequences[place]) for place in batch)
        ids = torch.tensor([sequences[place] + [0] * (width - len(sequences[place])) for place in batch])
        labels = torch.full_like(ids, -100)
        for row, place in enumerate(batch):
            labels[row, learnt[place] : len(sequences[place])] = ids[row, learnt[place] : len(sequences[place])]
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert loss.item() < 0.1, "below 0.1 nats a token every answer is the likeliest one"


def cue_on_top(loaded: Loaded, rows: Sequence[Example]) -> float:
    """The share of the rows in which the cue is the word with the largest score."""
    found = attribute_with(opened(loaded), list(rows))
    return sum(top_word(row) in CUES for row in found) / len(rows)


def top_word(row: Attribution) -> str:
    spans = list(map(Span, row.token_segment, row.token_start, row.token_end))
    places = words(row.segments)
    scores, _ = pool(spans, row.scores, places)
    best = places[max(range(len(places)), key=lambda place: scores[place])]
    return row.segments[best.segment].text[best.start : best.end]
