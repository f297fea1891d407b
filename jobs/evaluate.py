"""Let the teacher and every student answer the test split; without labels, predictions only. Failed students are left out.

Then students are explained on a sample of rows, to see whether they look where their teacher looked.
"""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.agreements import agreement_works
    from jobs.stages import run_works, wiring

    works = wiring(session)
    for failed in works.failed_students().values():
        session.console.say(f"evaluate     left out: {failed.run}, whose training failed: {failed.error}")
    run_works(session, "evaluate", [*works.predictions(), *agreement_works(works)], works.pool)


if __name__ == "__main__":
    main(run, __doc__)
