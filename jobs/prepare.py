"""Read the corpus and write it as shards of typed examples."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from jobs.cli import Session, main

if TYPE_CHECKING:
    from kd.manifests import Manifest


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.stages import outcome
    from jobs.teacher_wiring import EXAMPLES
    from jobs.watching import watched
    from kd.ray_corpus import prepare

    line = session.console.stage("prepare")
    there = session.store.manifest(EXAMPLES)
    complete = there is not None and not (session.retry_errors and there.errors)
    if not complete:
        session.connect()
    config = session.config
    with nullcontext() if complete else watched(line):
        manifest = prepare(config.task, config.prepare, session.store, line, EXAMPLES, session.retry_errors)
    session.remember()
    line.close(("complete already: " if complete else "") + outcome([manifest]))
    for warning in warnings(manifest, config.task.splits):
        session.console.say(f"             WARNING: {warning}")


def warnings(manifest: "Manifest", splits: Sequence[str]) -> Iterator[str]:
    """What a person should know of the examples before anything is made of them."""
    from kd.examples import UNSPACED
    from kd.spans import segmenter

    for split in splits:
        if not manifest.shards_of(split):
            yield f"the {split} split has no rows: nothing will be measured on it"
    unspaced = manifest.counts.get(UNSPACED, 0)
    if unspaced and segmenter() == "none":
        yield (
            f"{unspaced:,} rows have Thai, Khmer, Lao or Burmese text, which has no spaces between words, and nothing is"
            " installed that finds them: a whole run of it counts as one word. Install the extra `segmenter` here and on workers"
        )


if __name__ == "__main__":
    main(run, __doc__)
