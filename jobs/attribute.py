"""Find the input words that decided the teacher's answers: a raw score for every token, by Captum."""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.stages import check_models, run_works, wiring
    from kd.shards import is_finished

    works = wiring(session)
    attributions = works.attributions()
    if not is_finished(session.store, attributions):
        check_models(session.config)
    run_works(session, "attribute", [attributions], works.pool)


if __name__ == "__main__":
    main(run, __doc__)
