"""Say what a run will take before it is paid for: rows, lengths, GPU-hours, price, output; attribution measured on this machine.

With `--no-probe` no model's weights are loaded, and it takes seconds.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from jobs.cli import NO_PROBE, Session, cluster_address, main
from kd.config import Config
from kd.errors import InputError, StageError

if TYPE_CHECKING:
    from jobs.wiring import Wiring
    from kd.models import ModelSource


def run(session: Session) -> None:
    """Sample, plan, print, and write plan.json. What is heavy is imported here, after the config was read."""
    from jobs.teacher_wiring import EXAMPLES
    from jobs.wiring import Wiring
    from kd.planning import sample
    from kd.planning.planner import make_plan
    from kd.planning.price import read_prices
    from kd.planning.tables import to_text

    prices = read_prices()
    works = Wiring(session.config, session.store)
    line = session.console.stage("plan")
    examples = works.examples_if_any
    samples = sample.of_examples(session.store, EXAMPLES, examples) if examples else sample.of_corpus(session.config.task)
    _check_rows(session.config, samples)
    local = cluster_address(session.config.cluster) is None
    plan = make_plan(session.config, samples, prices, _taught(works), probing=session.probe, local=local)
    session.store.publish_json("plan.json", plan.as_json())
    session.console.say(f"\n{to_text(plan)}")
    line.close(session.store.path("plan.json"))


def _check_rows(config: Config, splits: Collection[str]) -> None:
    """Refuse a corpus without rows in a split that is explained or evaluated: nothing can be said of them."""
    asked = [config.evaluation.split, *(config.attribution.splits if config.teacher else ())]
    empty = next((split for split in asked if split not in splits), None)
    if empty:
        raise InputError(
            f"the {empty} split of {config.task.path} has no rows, so what they will take cannot be said; name another in"
            " evaluation.split and attribution.splits, or see task.files"
        )


def _taught(works: "Wiring") -> "ModelSource | None":
    """The teacher as `teach` left it; None if it has not, or is not to."""
    if works.config.teach is None or works.examples_if_any is None:
        return None
    try:
        return works.teacher
    except StageError:
        return None


if __name__ == "__main__":
    main(run, __doc__, NO_PROBE)
