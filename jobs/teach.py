"""Fine-tune the teacher on the training split, by the students' own loop, and say how good it is."""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.findings import Findings
    from jobs.stages import check_student, run_queue, run_works, wiring

    works = wiring(session)
    queue = works.teaching_queue()
    if queue.todo():
        check_student(session.config.student)
    run_works(session, "teach input", [works.teaching_features()], works.cpu_pool)
    run_queue(session, "teach", queue)
    session.console.say(f"             {Findings(works).teacher_verdict()}")


if __name__ == "__main__":
    main(run, __doc__)
