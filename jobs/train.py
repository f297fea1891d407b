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
    from jobs.stages import check_models, run_queue, run_works, warn_of_a_large_student, wiring
    from kd.shards import finished_in

    works = wiring(session)
    (session.audit or AuditFindings(works)).check_gate()
    check_students(works)
    features = works.student_features()
    if None in [finished_in(session.store, work) for work in features]:
        check_models(session.config)
    run_works(session, "features", features, works.cpu_pool)
    queue = works.training_queue()
    todo = queue.todo()
    if todo:
        warn_of_a_large_student(session, works)
    run_queue(session, "train", queue, todo)


if __name__ == "__main__":
    main(run, __doc__)
