"""Train the students: every variant with every seed, on label and rationale together."""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read.

    Raises:
        ConfigError: students cannot be explained as the teacher was.
        StageError: the audit's gate says stop, or students failed.
    """
    from jobs.agreements import check_students
    from jobs.audit_findings import AuditFindings
    from jobs.stages import run_queue, run_works, warn_of_a_large_student, wiring

    works = wiring(session)
    AuditFindings(works).check_gate()
    check_students(works)
    run_works(session, "features", works.student_features(), works.cpu_pool)
    queue = works.training_queue()
    if queue.todo():
        warn_of_a_large_student(session, works)
    run_queue(session, "train", queue)


if __name__ == "__main__":
    main(run, __doc__)
