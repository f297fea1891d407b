"""Say whether the rationales are any good, before students are trained: faithfulness, plausibility, label overlap; a gate."""

from functools import partial

from jobs.cli import Session, main
from kd.errors import each_in_turn


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read.

    Raises:
        StageError: a gated source does not pass and `audit.on_fail` is stop, or too many rows of a source got an error.
    """
    from jobs.audit_findings import AuditFindings
    from jobs.audit_wiring import AUDIT, AuditWiring
    from jobs.stages import run_works, wiring
    from jobs.teacher_findings import taught_on
    from kd.reporting.audit_table import of_the_teacher

    works = wiring(session)
    asking, reading = AuditWiring(works).works()
    if works.pool == works.cpu_pool or not asking:
        run_works(session, AUDIT, [*asking, *reading], works.cpu_pool)
    else:  # what needs no model keeps no GPU waiting
        parts = ((AUDIT, asking, works.pool), ("audit words", reading, works.cpu_pool))
        each_in_turn(partial(run_works, session, *part) for part in parts)
    found = session.audit = AuditFindings(works)
    for sentence in of_the_teacher(found.metrics(), taught_on(session.config)):
        session.console.say(f"             {sentence}")
    for verdict in found.verdicts():
        session.console.say(f"             {'' if verdict.passed else 'WARNING: '}{verdict.text}")
    found.check_gate()


if __name__ == "__main__":
    main(run, __doc__)
