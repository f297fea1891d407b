"""Let the teacher and every student answer the test split; without labels, predictions only."""

from jobs.cli import Session, main
from jobs.stages import run_works, wiring


def run(session: Session) -> None:
    """The stage."""
    works = wiring(session)
    run_works(session, "evaluate", works.predictions(), works.pool)


if __name__ == "__main__":
    main(run, __doc__)
