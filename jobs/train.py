"""Train the students: every variant with every seed, on label and rationale together."""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.stages import run_queue, run_works, warn_of_a_large_student, wiring

    works = wiring(session)
    run_works(session, "features", works.student_features(), works.cpu_pool)
    queue = works.training_queue()
    if queue.todo():
        warn_of_a_large_student(session, works)
    for manifest in run_queue(session, "train", queue):
        accuracy = manifest.figures["validation_accuracy"]
        shown = (
            "not validated" if accuracy is None else f"validation accuracy {accuracy:.1%} at step {manifest.figures['best_step']}"
        )
        session.console.say(f"             {manifest.config['variant']}/{manifest.config['seed']}: {shown}")


if __name__ == "__main__":
    main(run, __doc__)
