"""Fine-tune the teacher on the training split, by the students' own loop, and say how good it is."""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.findings import Findings
    from jobs.stages import check_models, run_queue, run_works, wiring
    from kd.shards import finished_in

    works = wiring(session)
    features = works.teaching_features()
    if finished_in(session.store, features) is None:
        check_models(session.config)
    run_works(session, "teach input", [features], works.cpu_pool)
    queue = works.teaching_queue()
    run_queue(session, "teach", queue, queue.todo())
    session.console.say(f"             {Findings(works).teacher_verdict()}")


if __name__ == "__main__":
    main(run, __doc__)
