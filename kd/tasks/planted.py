"""The quickstart's corpus: made-up questions with planted evidence, so that everything has a right answer.

A question names six things. One of them, the cue, belongs to one of the four options; the others belong to no answer.
Whoever knows which things belong where can answer, and only from the cue. `python -m kd.tasks.planted FOLDER` writes
the corpus as JSON lines; `Planted` reads it like any other.
"""

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kd.rows import SPLITS, Segment
from kd.tasks.base import Files, TaskConfig
from kd.tasks.fields import Record, optional_text_at, spans_at, text_at, texts_at
from kd.tasks.parsed import Need, Parsed, optional

CUES: dict[str, dict[str, str]] = {
    "place": {
        "bakery": "oven dough loaf croissant baguette pastry flour yeast pretzel brioche",
        "hospital": "scalpel stretcher nurse bandage syringe surgeon stethoscope ambulance crutch patient",
        "airport": "runway pilot passport suitcase terminal propeller cockpit jet hangar stewardess",
        "library": "bookshelf librarian novel catalogue dictionary bookmark encyclopedia atlas manuscript paperback",
        "farm": "tractor barn plough cow haystack rooster silo pitchfork goat scarecrow",
        "harbour": "dock anchor lighthouse ferry trawler buoy tugboat pier seagull lifeboat",
        "museum": "sculpture fossil curator mummy exhibit relic skeleton portrait pedestal vase",
        "gym": "dumbbell treadmill barbell trainer locker kettlebell sweatband trampoline punchbag stopwatch",
    },
    "job": {
        "carpenter": "hammer plank sawdust chisel nail workbench plywood lathe dowel sander",
        "dentist": "molar drill filling toothbrush cavity denture gum floss incisor mouthwash",
        "judge": "gavel verdict courtroom jury lawyer trial witness robe law prosecutor",
        "tailor": "suit hem button zipper thimble collar sleeve lapel tuxedo mannequin",
        "astronomer": "telescope comet galaxy planet observatory nebula asteroid eclipse constellation orbit",
        "plumber": "pipe faucet drain wrench leak toilet sink plunger boiler valve",
        "firefighter": "hydrant blaze ladder siren smoke hose helmet extinguisher alarm axe",
        "photographer": "camera lens tripod flash darkroom shutter negative album studio aperture",
    },
    "hobby": {
        "chess": "pawn bishop knight rook checkmate queen gambit stalemate grandmaster endgame",
        "gardening": "trowel seedling compost rake tulip hedge spade weed flowerpot greenhouse",
        "fishing": "bait hook trout rod reel worm net carp pike salmon",
        "painting": "easel canvas brush palette watercolour pigment varnish turpentine sketch fresco",
        "camping": "tent campfire lantern backpack marshmallow mosquito compass hammock ranger thermos",
        "cycling": "pedal saddle handlebar chain spoke tyre gear brake velodrome puncture",
        "knitting": "yarn wool needle scarf mitten skein cardigan stitch sock jumper",
        "sailing": "mast rudder keel spinnaker yacht regatta boom skipper tiller dinghy",
    },
}
"""Per topic, each answer and the ten things that belong to it and to no other."""

_DISTRACTOR_LINES = """
    envelope umbrella corner window mirror carpet bottle cushion curtain candle parcel ribbon drawer balcony doorbell teapot
    postcard hallway sofa staircase bracelet wallet coin fence puddle lamp jar radio calendar stone feather glove chimney
    pillow magnet cupboard stool towel rug kettle bucket spoon ceiling garage doormat napkin saucer shelf blanket keyring
"""
DISTRACTORS = _DISTRACTOR_LINES.split()
"""Things that belong to no answer."""

_NAME_LINE = "Ada Bruno Clara David Elena Felix Greta Hugo Ines Jonas Karin Leo Maria Nils Olga Paul Rosa Simon Tara Viktor"
NAMES = _NAME_LINE.split()

STORIES = (
    "{name} noticed the {0}, {1} and {2}, then the {3}, {4} and {5}.",
    "On the way home {name} saw the {0}, {1}, {2}, {3}, {4} and {5}.",
    "{name} forgot the {0}, laughed about the {1} and kept the {2}, {3}, {4} and {5}.",
    "One photo shows the {0} and {1}, the other the {2}, {3}, {4} and {5}.",
    "In a letter {name} mentions the {0}, {1}, {2} and {3}, but also the {4} and {5}.",
    "A friend asked {name} about the {0}, {1}, {2}, {3}, {4} and {5}.",
    "{name} dreamt of the {0} and {1}, and of the {2}, {3}, {4} and {5}.",
    "Beside the {0} and {1} {name} had drawn the {2}, {3}, {4} and {5}.",
    "{name} can remember the {0}, {1}, {2}, {3} and {4}, though hardly the {5}.",
    "Nobody believed {name}: the {0}, {1}, {2}, {3}, {4} and even the {5}!",
    "The diary has a page for the {0}, {1}, {2}, {3}, {4} and {5}.",
    "First came the {0}, then the {1}, {2}, {3} and {4}, and at last the {5}.",
    "Near the {0} {name} found the {1}, {2}, {3} and {4}, but never the {5}.",
    "{name} described the {0}, and ignored the {1}, {2}, {3}, {4} and {5}.",
    "Asked about the {0} and {1}, {name} thought of the {2}, {3}, {4} and {5}.",
    "The list that {name} made says: {0}, {1}, {2}, {3}, {4}, {5}.",
    "{name} borrowed the {0}, {1} and {2}, and bought the {3}, {4} and {5}.",
    "All day {name} talked of the {0}, {1} and {2}; the {3}, {4} and {5} came later.",
    "Neither the {0} nor the {1} surprised {name}, unlike the {2}, {3}, {4} and {5}.",
    "{name} compared the {0} with the {1}, {2}, {3}, {4} and {5}.",
    "The {0} made {name} late for the {1}, {2}, {3}, {4} and {5}.",
    "{name} joked about the {0}, {1}, {2} and {3}, and at night about the {4} and {5}.",
    "This song is about the {0}, {1}, {2}, {3}, {4} and {5}.",
    "{name} would sell the {0}, {1} and {2}, and keep the {3}, {4} and {5}.",
)
QUESTIONS = {
    "place": ("Where was {name}?", "Which place is it?", "Where did this happen?"),
    "job": ("What is {name}?", "Which job is it?", "Who would say this?"),
    "hobby": ("What does {name} enjoy?", "Which hobby is it?", "Which pastime is this?"),
}
RATIONALES = {
    "place": ("The {cue} is what people see at the {answer}.", "The {cue} belongs to the {answer}."),
    "job": ("The {cue} is part of the work of the {answer}.", "The {cue} is what the {answer} deals with."),
    "hobby": ("The {cue} is needed for {answer}.", "The {cue} goes with {answer}."),
}
CHOICES = 4
THINGS = 6
ROWS = {"train": 6000, "validation": 500, "test": 1000}

SAMPLE: list[dict[str, Any]] = [
    {
        "id": "0",
        "question": "Ada compared the coin with the lamp, oven, towel, rug and jar. Where was Ada?",
        "choices": ["gym", "bakery", "farm", "museum"],
        "answer": "bakery",
        "evidence": [[37, 41]],
        "llm_rationale": "The oven belongs to the bakery.",
    },
    {
        "id": "1",
        "question": "This song is about the gavel, sofa, stone, candle, fence and parcel. Which job is it?",
        "choices": ["judge", "tailor", "plumber", "dentist"],
        "answer": "judge",
        "evidence": [[23, 28]],
        "llm_rationale": "The gavel is part of the work of the judge.",
    },
    {
        "id": "2",
        "question": "The list that Leo made says: mirror, kettle, puddle, magnet, wallet, pawn. What does Leo enjoy?",
        "choices": ["sailing", "camping", "knitting", "chess"],
        "answer": "chess",
        "evidence": [[69, 73]],
        "llm_rationale": "The pawn is needed for chess.",
    },
]


class Planted(TaskConfig):
    """The quickstart's multiple choice, with one planted cue in each question. Every split has files of its own."""

    type: Literal["planted"] = "planted"
    path: str = "data/planted"
    """Folder of the corpus."""
    files: Files = Files(train="train[.-]*", validation="validation[.-]*", test="test[.-]*")
    """Which files hold which split."""
    id: str | None = "id"
    """Column with the record's id; null = the uid is a hash of the record's content."""

    def needs(self) -> Sequence[Need]:
        key = "task.type (columns maps any names)"
        asked = [Need(key, ("question",)), Need(key, ("choices",)), Need(key, ("answer",), where="train")]
        return [*asked, *optional("evidence", "llm_rationale")]

    @property
    def brings_choices(self) -> bool:
        return True

    def parse(self, record: Record) -> Parsed:
        options = texts_at(record, "choices")
        segments = [Segment("question", text_at(record, "question"))]
        for number, option in enumerate(options):
            segments.append(Segment("prompt", ", " if number else "\nOptions: "))
            segments.append(Segment("choice", option))
        return Parsed(
            segments=segments,
            target=optional_text_at(record, "answer"),
            label_set=options,
            evidence=spans_at(record, "evidence", segment=0),
            llm_rationale=optional_text_at(record, "llm_rationale"),
        )


def question(seed: int, split: str, number: int) -> dict[str, Any]:
    """One record, a pure function of its arguments: a longer corpus begins with the shorter one."""
    draw = random.Random(f"{seed}/{split}/{number}")
    topic = draw.choice(sorted(CUES))
    choices = draw.sample(sorted(CUES[topic]), CHOICES)
    answer = draw.choice(choices)
    cue = draw.choice(CUES[topic][answer].split())
    things = draw.sample([cue, *draw.sample(DISTRACTORS, THINGS - 1)], THINGS)
    asked = f"{draw.choice(STORIES)} {draw.choice(QUESTIONS[topic])}".format(*things, name=draw.choice(NAMES))
    return {
        "id": str(number),
        "question": asked,
        "choices": choices,
        "answer": answer,
        "evidence": [[match.start(), match.end()] for match in re.finditer(rf"\b{cue}\b", asked)],
        "llm_rationale": draw.choice(RATIONALES[topic]).format(cue=cue, answer=answer),
    }


def generate(folder: str | Path, rows: Mapping[str, int] = ROWS, seed: int = 0) -> None:
    """Write `<split>.jsonl` for every split in `rows`, with that many records. The same arguments give the same bytes."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split, count in rows.items():
        lines = (json.dumps(question(seed, split, number)) + "\n" for number in range(count))
        (Path(folder) / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the corpus as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m kd.tasks.planted", description="Write the quickstart's corpus as JSON lines."
    )
    parser.add_argument("folder", help="folder of the corpus; made if missing")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another corpus (default: 0)")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, default=ROWS[split], help=f"records of {split} (default: {ROWS[split]})")
    given = parser.parse_args(arguments)
    generate(given.folder, {split: getattr(given, split) for split in SPLITS}, given.seed)


if __name__ == "__main__":
    main()
