"""The whole chain, stage by stage. What is complete is skipped, so the same command goes on where it stopped."""

from functools import partial

from jobs import attribute, audit, evaluate, prepare, rationalize, report, teach, train
from jobs.cli import Session, main
from kd.errors import each_in_turn


def run(session: Session) -> None:
    """The plot of the project.

    Raises:
        StageError: a stage failed. Up to the audit that is the end. Where models could not be trained or evaluated, it is
            raised behind the report, which is made of what there is.
    """
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
    each_in_turn(partial(stage.run, session) for stage in (train, evaluate, report))


if __name__ == "__main__":
    main(run, __doc__)
