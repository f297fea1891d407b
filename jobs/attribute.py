"""Find the input words that decided the teacher's answers: a raw score for every token, by Captum."""

from collections.abc import Sequence

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.stages import check_models, run_works, warn_of_a_large_student, wiring
    from kd.shards import finished_in

    works = wiring(session)
    attributions = works.attributions()
    if finished_in(session.store, attributions) is None:
        check_models(session.config)
        warn_of_a_large_student(session, works)
        _advise(session, [shard.rows for shard in attributions.shards])
    run_works(session, "attribute", [attributions], works.pool)


def _advise(session: Session, shards: Sequence[int]) -> None:
    """Say where smaller shards would keep more of the actors busy."""
    from kd.planning.plan import smaller_shard

    actors, rows = session.config.cluster.max_actors, session.config.prepare.rows_per_shard
    better = smaller_shard(shards, actors, rows)
    if better is not None:
        session.console.say(
            f"attribute    {len(shards)} shard{'s' * (len(shards) > 1)} for {actors} actors: some will be idle;"
            f" prepare.rows_per_shard: {better}, under a new run name, would keep all busy"
        )


if __name__ == "__main__":
    main(run, __doc__)
