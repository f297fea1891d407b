"""Turn scores into rationales: the most influential words, and every other source that the config names."""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.stages import run_works, wiring

    works = wiring(session)
    run_works(session, "rationalize", list(works.rationales().values()), works.cpu_pool)


if __name__ == "__main__":
    main(run, __doc__)
