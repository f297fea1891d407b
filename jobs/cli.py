"""What all jobs have in common: read the config, open the run directory, connect to Ray, end with a clear word."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jobs.console import Console, console_with_log
from kd.config import ClusterConfig, Config, read_config
from kd.errors import ConfigError, StageError, UserError
from kd.store import Store

FAILED, WRONG_CONFIG, INTERRUPTED = 1, 2, 130
"""Exit codes, beside 0."""


@dataclass(frozen=True)
class Session:
    """What a stage is given: the run's config, its directory, where to tell a person about it, and a cluster on demand."""

    config: Config
    store: Store
    console: Console
    exits: ExitStack = field(default_factory=ExitStack)

    def connect(self) -> None:
        """Connect to the cluster, or start a local one; stages with nothing to do never call this."""
        import ray

        if not ray.is_initialized():
            self.exits.enter_context(connected(self.config.cluster))

    def remember(self) -> None:
        """Save the resolved config. It is the newest one; what a stage was made with stands in its manifest."""
        self.store.publish_json("config.json", self.config.model_dump(mode="json"))


Stage = Callable[[Session], None]


def main(stage: Stage, description: str | None) -> None:
    """Run one stage as a program. Exit codes: 0 done, 1 the stage failed, 2 the config is wrong, 130 interrupted."""
    job = Path(sys.argv[0]).stem
    try:
        config = read_config(f"python -m jobs.{job}", description or "", sys.argv[1:])
        store = Store.at(config.directory)
        with _log_of(store, job) as log:
            code = _run(stage, config, store, log)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        code = WRONG_CONFIG if isinstance(error, ConfigError) else FAILED
    sys.exit(code)


def _run(stage: Stage, config: Config, store: Store, log: Path) -> int:
    """The stage, with its output sorted: what is for a person to the console, the rest to the log."""
    with console_with_log(log) as console, ExitStack() as exits:
        try:
            stage(Session(config, store, console, exits))
        except UserError as error:
            traceback.print_exc()
            console.say(f"\nerror: {error}\n\nThe log is {log}")
            return WRONG_CONFIG if isinstance(error, ConfigError) else FAILED
        except KeyboardInterrupt:
            console.say("\ninterrupted: what is finished is kept, and the same command goes on from there")
            return INTERRUPTED
        except BaseException:
            console.say(f"\n{traceback.format_exc()}\nThis is a defect of the program; please report it with {log}")
            raise
    return 0


@contextmanager
def _log_of(store: Store, job: str) -> Iterator[Path]:
    """The job's log file: in the run directory, or for an object store a temporary file that is uploaded at the end."""
    if store.is_local:
        yield Path(store.path(f"logs/{job}.log"))
        return
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / f"{job}.log"
        try:
            yield log
        finally:
            store.publish(f"logs/{job}.log", log.read_bytes())


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[None]:
    """A Ray cluster for the length of a job: the one named, the one submitted to, or a local one of its own."""
    import ray

    address = cluster.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address)
        else:
            ray.init(
                address="local",
                num_cpus=cluster.local_cpus or 2 * (os.cpu_count() or 1),
                object_store_memory=cluster.local_object_store_bytes,
                include_dashboard=False,
            )
    except ConnectionError as error:
        raise StageError(f"no Ray cluster answers at {address}: {error}; start one, or leave cluster.address empty") from error
    try:
        yield
    finally:
        ray.shutdown()
