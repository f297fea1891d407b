"""An emulator of Google's object store on loopback, for tests; a process of its own, as its client may block this one."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from unittest import mock

BUCKET = "runs"
"""The bucket that it has."""
START_S = 60.0


@contextmanager
def serving_gs() -> Iterator[str]:
    """An empty emulator; its endpoint, which is in the environment meanwhile."""
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    options = ["--host=127.0.0.1", f"--port={port}", "--in-memory", f"--default-bucket={BUCKET}"]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            endpoint = f"http://127.0.0.1:{port}"
            with mock.patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": endpoint}):
                yield endpoint
        finally:
            process.kill()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Raises TimeoutError where the emulator does not answer."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"the emulator did not start: exit code {process.poll()}")
