"""The whole chain, stage by stage. What is complete is skipped, so the same command goes on where it stopped."""

from jobs import attribute, audit, evaluate, prepare, rationalize, report, teach, train
from jobs.cli import Session, main


def run(session: Session) -> None:
    """The plot of the project."""
    from jobs.stages import check_models
    from jobs.teacher_wiring import EXAMPLES

    if session.store.manifest(EXAMPLES) is None:
        check_models(session.config)
    prepare.run(session)
    if session.config.teach is not None:
        teach.run(session)
    if session.config.teacher is not None:
        attribute.run(session)
    rationalize.run(session)
    audit.run(session)
    train.run(session)
    evaluate.run(session)
    report.run(session)


if __name__ == "__main__":
    main(run, __doc__)
