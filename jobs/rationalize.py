"""Turn scores into rationales: the most influential words, and every other source that the config names."""

from jobs.cli import Session, main
from jobs.stages import run_works, wiring


def run(session: Session) -> None:
    """The stage."""
    works = wiring(session)
    run_works(session, "rationalize", list(works.rationales().values()), works.cpu_pool)


if __name__ == "__main__":
    main(run, __doc__)
