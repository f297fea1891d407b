"""How a stage is run for a person: its line, its cluster, and the sentence it ends with."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jobs.cli import Session
from jobs.cluster import of_pool, of_workers, telling_of_waits
from jobs.console import Line
from jobs.wiring import Wiring
from kd import ray_data
from kd.errors import UserError
from kd.models import ModelConfig, ModelSource, load, needs_tokenizer
from kd.ray_data import Pool
from kd.ray_train import train_queue
from kd.shards import Work, is_finished
from kd.store import Manifest, Store
from kd.training.progress import read_progress
from kd.training.runs import Queue


def wiring(session: Session) -> Wiring:
    """The works of the session's run, with the tokenizers that they need. Its directory must not be another corpus'."""
    works = Wiring(session.config, session.store)
    if works.examples_if_any:
        works.make_tokenizers()
    session.remember()
    return works


def check_student(config: ModelConfig) -> None:
    """Refuse a student that cannot be opened before anything is paid for it: its tokenizer and architecture, no weights.

    A student with a tokenizer that is trained on the corpus has nothing to open.

    Raises:
        ConfigError, InputError: what `kd.models.load` raises, said of the student.
    """
    if needs_tokenizer(config):
        return
    try:
        load(ModelSource(config), "meta")
    except UserError as error:
        raise type(error)(f"the student: {error}") from error


def run_works(session: Session, title: str, works: Sequence[Work], pool: Pool) -> list[Manifest]:
    """Do what is left of these works on the cluster, with one progress line for all of them."""
    line = session.console.stage(title)
    finished = all(is_finished(session.store, work) for work in works)
    if not finished:
        session.connect()
    with telling_of_waits(session, line, of_pool(pool)):
        manifests = ray_data.run(session.store, works, pool, line)
    line.close(("complete already: " if finished else "") + outcome(manifests))
    return manifests


def run_queue(session: Session, title: str, queue: Queue) -> list[Manifest]:
    """Train what is left of a queue on the cluster, with one progress line for all its runs."""
    line = session.console.stage(title, "steps")
    todo = queue.todo()
    if todo:
        session.connect()
        cluster = session.config.cluster
        needs = of_workers("teach" if queue.stage == "teach" else "training", queue.training, cluster)
        with telling_of_waits(session, line, needs), _following(session.store, queue.stage, line):
            train_queue(queue, cluster.training_labels)
    manifests = [session.store.manifest(item.folder) for item in queue.items]
    finished = [manifest for manifest in manifests if manifest is not None]
    line.close(("" if todo else "complete already: ") + f"{len(finished)} of {len(manifests)} models")
    return finished


@contextmanager
def _following(store: Store, stage: str, line: Line) -> Iterator[None]:
    """Show what the workers write of their progress, once a second, for as long as they work."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(1.0):
            progress = read_progress(store, stage)
            if progress and progress.run:
                figures = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in progress.figures.items())
                line(progress.steps_done, progress.steps_in_all, f"{progress.run}  {figures}")

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()


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
