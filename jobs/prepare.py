"""Read the corpus and write it as shards of typed examples."""

from contextlib import nullcontext

from jobs.cli import Session, main


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
    for split in config.task.splits:
        if not manifest.shards_of(split):
            session.console.say(f"             WARNING: the {split} split has no rows: nothing will be measured on it")


if __name__ == "__main__":
    main(run, __doc__)
