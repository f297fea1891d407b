"""How a stage is run for a person: its line, its cluster, and the sentence it ends with."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

from jobs.cli import Session
from jobs.cluster import of_workers, waiting_for_workers
from jobs.training_lines import TrainingLines
from jobs.watching import watched
from jobs.wiring import Wiring
from kd import ray_data
from kd.attribution.engine import UNLIKELY_ENDS, UNLIKELY_ENDS_MILLINATS
from kd.config import Config
from kd.errors import StageError, UserError
from kd.loading import count_parameters, load
from kd.manifests import Manifest
from kd.models import ModelSource, needs_tokenizer
from kd.ray_data import Pool
from kd.ray_train import train_queue
from kd.shards import Work, finished_in
from kd.training.runs import Claimed, Queue


def wiring(session: Session) -> Wiring:
    """The works of the session's run, with the tokenizers that they need. Its directory must not be another corpus'.

    They are made once: what they have found complete stays so for the length of a job.
    """
    if session.works is None:
        works = Wiring(session.config, session.store)
        if works.examples_if_any:
            works.make_tokenizers()
            session.works = works
        session.remember()
        return works
    return session.works


def check_models(config: Config) -> None:
    """Refuse a teacher, if there is one, or a student that cannot be opened before anything is paid for.

    Opened are tokenizer and architecture, without weights, as the family and within the limits that they will have; a small
    copy of the architecture is tried out here, where one can be made; a classifier must go together with the task, the task's
    labels must be different ones to the tokenizer, and adapters need layers that they fit. A model whose tokenizer is trained on
    the corpus has nothing to open yet.

    Raises:
        ConfigError, InputError: what `kd.loading.load` or the family raises, said of the model.
    """
    from kd.families.labels import check_fixed_labels
    from kd.families.opening import open_family
    from kd.shrinking import shrunk
    from kd.training.adapters import adapted_layers

    loops = {"teacher": config.teach, "student": config.training}
    for role, model in (("teacher", config.teacher), ("student", config.student)):
        if model is None or needs_tokenizer(model):
            continue
        try:
            loaded = load(ModelSource(model), "meta")
            family = open_family(loaded, model)
            family.check_choices(config.task.brings_choices)
            check_fixed_labels(family, config.task.fixed_labels)
            copy = shrunk(loaded)
            if copy is not None:
                open_family(copy, model)
            loop = loops[role]
            if loop is not None and loop.lora:
                adapted_layers(loaded.model, loop.lora)
        except UserError as error:
            raise type(error)(f"the {role}: {error}") from error


def warn_of_a_large_student(session: Session, works: Wiring) -> None:
    """Say so where the student has more parameters than its teacher. Training goes on: it may be meant."""
    if session.config.teacher is None:
        return
    teacher, student = (count_parameters(works.untrained(model, 0)) for model in (session.config.teacher, session.config.student))
    if student > teacher:
        session.console.say(
            f"WARNING: the student has {student:,} parameters, more than its teacher's {teacher:,}. A student is meant to be the"
            " smaller one; check teacher and student in the config"
        )


def run_works(session: Session, title: str, works: Sequence[Work], pool: Pool) -> list[Manifest]:
    """Do what is left of these works on the cluster, with one progress line for all of them. Raises like `ray_data.run`."""
    line = session.console.stage(title)
    finished = None not in [finished_in(session.store, work, session.retry_errors) for work in works]
    if not finished:
        session.connect()
    try:
        with nullcontext() if finished else watched(line, pool):
            manifests = ray_data.run(session.store, works, pool, line, session.retry_errors)
    except StageError:
        line.close("failed")
        raise
    line.close(("complete already: " if finished else "") + outcome(manifests))
    warn_of_unlikely_ends(session, manifests)
    return manifests


def warn_of_unlikely_ends(session: Session, manifests: Sequence[Manifest]) -> None:
    """Say so where a model hardly expects the answers that were explained to end where they end."""
    told = [manifest for manifest in manifests if UNLIKELY_ENDS in manifest.counts]
    if not told:
        return
    rows = sum(manifest.rows - sum(manifest.errors.values()) for manifest in told)
    ends, millinats = (sum(manifest.counts[name] for manifest in told) for name in (UNLIKELY_ENDS, UNLIKELY_ENDS_MILLINATS))
    session.console.say(
        f"             WARNING: behind {ends:,} of {rows:,} explained answers the model hardly expects an end (log-probability"
        f" {-millinats / 1000 / ends:.1f} nats on average, where below -4.6 is counted). Answers that it writes run on until"
        " max_generated_tokens. Of a model that was trained here the end is part of the explained number, and then most of it:"
        " check eos_token_id in its generation_config.json. Of any other the end is left out; a model that was tuned to chat"
        " needs chat_template: true"
    )


def run_queue(session: Session, title: str, queue: Queue, todo: Sequence[Claimed]) -> list[Manifest]:
    """Train what is left of a queue on the cluster, with one progress line for each run; `todo` are those to train.

    Raises:
        StageError: some runs failed; the others are finished.
    """
    line = session.console.stage(title, "steps")
    cluster = session.config.cluster
    lines = TrainingLines(line, queue, todo, waiting_for_workers(session, of_workers(queue.section, queue.training, cluster)))
    if todo:
        session.connect()
    try:
        train_queue(queue, cluster.training_labels, lines.following)
    except StageError:
        line.close(f"failed: {len(_finished(queue))} of {len(queue.items)} models")
        raise
    finished = _finished(queue)
    line.close(("" if todo else "complete already: ") + f"{len(finished)} of {len(queue.items)} models")
    return finished


def _finished(queue: Queue) -> list[Manifest]:
    manifests = [queue.store.manifest(item.folder) for item in queue.items]
    return [manifest for manifest in manifests if manifest is not None]


def outcome(manifests: Sequence[Manifest]) -> str:
    """What came out, in a few words: rows, errors by reason, what was counted."""
    rows = sum(manifest.rows for manifest in manifests)
    totals: Counter[str] = Counter()
    for manifest in manifests:
        totals.update({f"error {reason}": n for reason, n in manifest.errors.items()})
        totals.update({name.replace("_", " "): n for name, n in manifest.counts.items()})
    tokens, padding, _ = (totals.pop(name, 0) for name in ("tokens", "padding tokens", "answering ms"))
    totals.pop(UNLIKELY_ENDS_MILLINATS.replace("_", " "), None)
    said = [f"{name} {n:,}" for name, n in sorted(totals.items())]
    return ", ".join([f"{rows:,} rows", *said, *([f"padding {padding / (tokens + padding):.1%}"] if tokens else [])])
