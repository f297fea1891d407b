"""Read the corpus and write it as shards of typed examples."""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.stages import outcome
    from jobs.wiring import EXAMPLES
    from kd.ray_corpus import prepare

    line = session.console.stage("prepare")
    finished = session.store.manifest(EXAMPLES) is not None
    if not finished:
        session.connect()
    manifest = prepare(session.config.task, session.config.prepare, session.store, line)
    session.remember()
    line.close(("complete already: " if finished else "") + outcome([manifest]))


if __name__ == "__main__":
    main(run, __doc__)
