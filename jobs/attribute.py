"""Find the input words that decided the teacher's answers: a raw score for every token, by Captum."""

from jobs.cli import Session, main
from jobs.stages import run_works, wiring


def run(session: Session) -> None:
    """The stage."""
    works = wiring(session)
    run_works(session, "attribute", [works.attributions()], works.pool)


if __name__ == "__main__":
    main(run, __doc__)
