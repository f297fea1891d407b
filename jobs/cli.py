"""What all jobs have in common: read the config, open the run directory, connect to Ray, end with a clear word."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import interrupts
from jobs.console import Console, console_with_log
from jobs.job_log import JobLog, job_log
from kd.cluster_config import ClusterConfig
from kd.config import Config, read_config
from kd.errors import ConfigError, UserError
from kd.store import Store

if TYPE_CHECKING:
    from jobs.audit_findings import AuditFindings
    from jobs.wiring import Wiring

RETRY = "--retry-errors"
NO_PROBE = "--no-probe"
"""Options, no keys of the config: they decide what is done, not what comes out. `plan` has the second, others the first."""
FAILED, WRONG_CONFIG = 1, 2
"""Exit codes, beside 0 and those of `interrupts.exit_code`."""
ABOUT_LOGS = "The log of each start is ROOT/NAME/logs/{job}-TIME-TOKEN.log. An object store has it from every 15 s."


@dataclass
class Session:
    """What a stage is given: the run's config, its directory, where to tell a person about it, and a cluster on demand.

    `works` are what the stages of one job share, once the corpus is complete; `audit` what was read of it once it is.
    """

    config: Config
    store: Store
    console: Console
    exits: ExitStack = field(default_factory=ExitStack)
    job: str = ""
    retry_errors: bool = False
    probe: bool = True
    works: "Wiring | None" = None
    audit: "AuditFindings | None" = None

    def __post_init__(self) -> None:
        """What is found complete is not asked for again."""
        self.store = self.store.remembering()

    def connect(self) -> None:
        """Connect to the cluster, or start a local one; stages with nothing to do never call this."""
        import ray

        from jobs.cluster import connected

        if not ray.is_initialized():
            self.exits.enter_context(connected(self))

    def remember(self) -> None:
        """Save the resolved config. It is the newest one; what a stage was made with stands in its manifest."""
        self.store.publish_json("config.json", self.config.model_dump(mode="json"))


Stage = Callable[[Session], None]


def main(stage: Stage, description: str | None, option: str = RETRY) -> None:
    """Run one stage as a program.

    Exit codes: 0 done, 1 the stage failed, 2 the config is wrong, 128 + n stopped by signal n (Ctrl-C 130, SIGTERM 143,
    SIGHUP 129).
    """
    with interrupts.caught():
        code = _code(stage, description, option)
    sys.exit(code)


def _code(stage: Stage, description: str | None, option: str) -> int:
    job = Path(sys.argv[0]).stem
    try:
        arguments = [given for given in sys.argv[1:] if given != option]
        config = read_config(f"python -m jobs.{job}", f"{description or ''}\n\n{ABOUT_LOGS.format(job=job)}", arguments, option)
        check_root(config)
        store = Store.at(config.directory)
        with job_log(store, job) as log:
            given = {option} & set(sys.argv[1:])
            return _run(stage, config, store, job, log, given)
    except UserError as error:
        with suppress(OSError):  # an output that is gone
            sys.stderr.write(f"error: {error}\n")
        return WRONG_CONFIG if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:  # before there is a console, or after it
        with suppress(OSError):
            sys.stderr.write(f"{_stopped(job)}\n")
        return interrupts.exit_code()


def cluster_address(cluster: ClusterConfig) -> str | None:
    """The running cluster that a job works on: the one named, or the one it was submitted to. None: a local one of its own."""
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def check_root(config: Config) -> None:
    """Raise ConfigError where each machine of a running cluster would take `root` for a folder of its own."""
    if cluster_address(config.cluster) and "://" not in config.root and not Path(config.root).is_absolute():
        raise ConfigError(
            f"root: {config.root!r} is relative to a working directory that every machine of a cluster has for itself; expected"
            " s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or the absolute path of a folder that all of them share"
        )


def _run(stage: Stage, config: Config, store: Store, job: str, log: JobLog, given: set[str]) -> int:
    """The stage, with its output sorted: what is for a person to the console, the rest to the log."""
    with console_with_log(log.file) as console, ExitStack() as exits:
        console.say(f"{'log':<12} {log.place}")
        try:
            store.check_bucket()
            stage(Session(config, store, console, exits, job, retry_errors=RETRY in given, probe=NO_PROBE not in given))
        except UserError as error:
            traceback.print_exc()
            console.say(f"\nerror: {error}\n")
            console.say(f"The log is {log.settle(error)}")
            return WRONG_CONFIG if isinstance(error, ConfigError) else FAILED
        except KeyboardInterrupt:
            traceback.print_exc()
            console.say(f"\n{_stopped(job)}")
            log.settle()
            return interrupts.exit_code()
        except BaseException:
            traceback.print_exc()
            console.say(f"\n{traceback.format_exc()}")
            console.say(f"This is a defect of the program; please report it with {log.settle()}")
            raise
    return 0


def _stopped(job: str) -> str:
    return (
        f"stopped by {interrupts.received().name}: finished stages and shards and the last checkpoints are kept, and"
        f" `python -m jobs.{job}` with the same config goes on from there"
    )
