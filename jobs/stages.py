"""How a stage is run for a person: its line, its cluster, and the sentence it ends with."""

from collections.abc import Sequence

from jobs.cli import Session
from jobs.wiring import Wiring
from kd import ray_data
from kd.ray_data import Pool
from kd.shards import Work, is_finished
from kd.store import Manifest


def wiring(session: Session) -> Wiring:
    """The works of the session's run."""
    return Wiring(session.config, session.store)


def run_works(session: Session, title: str, works: Sequence[Work], pool: Pool) -> list[Manifest]:
    """Do what is left of these works on the cluster, with one progress line for all of them."""
    line = session.console.stage(title)
    finished = all(is_finished(session.store, work) for work in works)
    if not finished:
        session.connect()
    manifests = ray_data.run(session.store, works, pool, line)
    line.close(("complete already: " if finished else "") + outcome(manifests))
    return manifests


def outcome(manifests: Sequence[Manifest]) -> str:
    """What came out, in a few words: rows, errors by reason, what was counted."""
    rows = sum(manifest.rows for manifest in manifests)
    totals: dict[str, int] = {}
    for manifest in manifests:
        for reason, n in manifest.errors.items():
            totals[f"error {reason}"] = totals.get(f"error {reason}", 0) + n
        for name, n in manifest.counts.items():
            totals[name.replace("_", " ")] = totals.get(name.replace("_", " "), 0) + n
    return ", ".join([f"{rows:,} rows", *(f"{name} {n:,}" for name, n in sorted(totals.items()))])
