"""A job's log: one file for each start, below `logs/` of the run directory.

On an object store it is written beside, on this machine, and uploaded every few seconds, so that a job which is killed leaves
what it had written by then.
"""

import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kd.errors import StoreError
from kd.refusals import tolerated
from kd.store import Store

UPLOAD_S = 15.0
"""A log that has grown is uploaded so often."""
NAME = "logs/{job}-{time:%Y%m%dT%H%M%SZ}-{token}.log"


class JobLog:
    """The log of one start of a job.

    Attributes:
        place: Where a person finds it, in the run directory.
        file: Where it is written: the same, or for an object store a temporary file.
    """

    def __init__(self, store: Store, job: str, folder: Path) -> None:
        self.store = store
        self.name = NAME.format(job=job, time=datetime.now(UTC), token=uuid.uuid4().hex[:6])
        self.place = store.path(self.name)
        self.file = Path(self.place) if store.is_local else folder / Path(self.name).name
        self.refused: StoreError | None = None
        self._uploaded_bytes = 0
        self._one_at_a_time = threading.Lock()

    def upload(self) -> None:
        """Bring an object store's copy up to date. Raises StoreError where the store refuses it."""
        with self._one_at_a_time:
            if not self.store.is_local and self.file.stat().st_size > self._uploaded_bytes:
                self._uploaded_bytes = self.store.publish_file(self.file, self.name).size_bytes

    def settle(self, error: Exception | None = None) -> str:
        """Upload what there is, at the end of a job; where the log is now: on this machine where the store refuses it.

        A store that has just refused to work, as `error` says, is not asked again.
        """
        if isinstance(error, StoreError) and _is_refusal(error.__cause__) and not self.store.is_local:
            self.refused = error
        try:
            if self.refused is None:
                self.upload()
        except StoreError as refused:
            self.refused = refused
        return self.place if self.refused is None else str(self.file)


def _is_refusal(cause: BaseException | None) -> bool:
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


@contextmanager
def job_log(store: Store, job: str, upload_s: float = UPLOAD_S) -> Iterator[JobLog]:
    """The log of a job that runs inside. A temporary file that could not be uploaded at the end is kept, and named."""
    if store.is_local:
        yield JobLog(store, job, Path())
        return
    folder = Path(tempfile.mkdtemp(prefix="kd-log-"))
    log, ended = JobLog(store, job, folder), threading.Event()
    threading.Thread(target=_upload_at_times, args=(log, ended, upload_s), daemon=True).start()
    try:
        yield log
    finally:
        ended.set()
        told = log.refused
        log.settle()
        if log.refused is None:
            shutil.rmtree(folder)
        elif told is None:
            sys.stderr.write(f"WARNING: the log is {log.file}, as it could not be uploaded: {log.refused}\n")


def _upload_at_times(log: JobLog, ended: threading.Event, upload_s: float) -> None:
    """What the store refuses is a warning in the log, and is tried again."""
    while not ended.wait(upload_s):
        with tolerated():
            log.upload()
