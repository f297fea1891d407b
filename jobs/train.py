"""Train the students: every variant with every seed, on label and rationale together."""

from collections.abc import Mapping
from typing import Any

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
        session.console.say(
            f"             {manifest.config['variant']}/{manifest.config['seed']}: {_validated(manifest.figures)}"
        )


def _validated(figures: Mapping[str, Any]) -> str:
    """How the best step and the last one validate."""
    if figures["validation_accuracy"] is None:
        return "not validated"
    best = f"validation accuracy {figures['validation_accuracy']:.1%} at step {figures['best_step']}"
    last = f", {figures['last_validation_accuracy']:.1%} at the last, {figures['last_step']}"
    return best if figures["last_step"] == figures["best_step"] else best + last


if __name__ == "__main__":
    main(run, __doc__)
