"""Find the input words that decided the teacher's answers: a raw score for every token, by Captum."""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.stages import run_works, wiring

    works = wiring(session)
    run_works(session, "attribute", [works.attributions()], works.pool)


if __name__ == "__main__":
    main(run, __doc__)
