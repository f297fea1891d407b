"""What all jobs have in common: read the config, open the run directory, connect to Ray, end with a clear word."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.console import Console, console_with_log
from kd.config import ClusterConfig, Config, read_config
from kd.errors import ConfigError, StoreError, UserError
from kd.store import Store


@dataclass(frozen=True)
class Session:
    """What a stage is given: the run's config, its directory, and where to tell a person about it."""

    config: Config
    store: Store
    console: Console


Stage = Callable[[Session], None]


def main(stage: Stage, description: str | None) -> None:
    """Run one stage as a program. Exit codes: 0 done, 1 the stage failed, 2 the config is wrong, 130 interrupted."""
    program = f"python -m jobs.{Path(sys.argv[0]).stem}"
    try:
        config = read_config(program, description or "", sys.argv[1:])
    except ConfigError as error:
        sys.exit(_report(error, 2))
    store = Store.at(config.directory)
    with _log_of(store, Path(sys.argv[0]).stem) as log:
        sys.exit(_run(stage, config, store, log))


def _run(stage: Stage, config: Config, store: Store, log: Path) -> int:
    with console_with_log(log) as console:
        try:
            _remember(store, config)
            with connected(config.cluster):
                stage(Session(config, store, console))
        except UserError as error:
            traceback.print_exc()
            console.say(f"\nerror: {error}\nThe log is {log}.")
            return 2 if isinstance(error, ConfigError) else 1
        except KeyboardInterrupt:
            console.say("\ninterrupted: what is finished is kept, the same command goes on from there")
            return 130
        except BaseException:
            console.say(f"\n{traceback.format_exc()}\nThis is a bug: please report it with the log {log}.")
            raise
    return 0


def _report(error: UserError, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


def _remember(store: Store, config: Config) -> None:
    """Save the resolved config. It is the newest one: what a stage was made with stands in its manifest."""
    store.publish_json("config.json", config.model_dump(mode="json"))


@contextmanager
def _log_of(store: Store, job: str) -> Iterator[Path]:
    """The job's log file: inside the run directory, or for an object store a temporary file that is uploaded at the end."""
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

    if ray.is_initialized():
        yield
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        cores = os.cpu_count() or 1
        ray.init(
            address="local",
            num_cpus=cluster.local_cpus or max(4, 2 * cores),
            object_store_memory=cluster.local_object_store_bytes,
            include_dashboard=False,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray

    try:
        ray.init(address=address)
    except ConnectionError as error:
        raise StoreError(f"no Ray cluster answers at {address}: {error}; start one, or leave cluster.address empty") from error
