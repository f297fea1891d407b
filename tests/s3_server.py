"""A real S3 server on loopback, for tests: moto behind its own port, with a count of its requests.

In a test, the fixture `s3` of `conftest.py` starts one for the module and hands its address over by environment:

    def test_something(s3: S3Server) -> None:
        s3.make_bucket("runs")                      # there is no bucket before
        store = Store.at("s3://runs/one")           # AWS_ENDPOINT_URL and fake credentials are in the environment
        s3.reset()
        store.publish("a", b"x")
        assert s3.requests["PUT"] == 1              # how many requests by verb since `reset`; `s3.keys` has their paths

Processes started by the test inherit the environment; workers of a Ray that was started before do not, so a test that needs
Ray starts its own below `s3`. Without the fixture: `with serving() as server: ...` and `server.environment`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock
from urllib.request import Request, urlopen

import pyarrow.fs as pafs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "a-word-that-nobody-may-read"}
ALONE = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""What keeps a client from the machine's own settings, and from asking the machine for credentials."""


class _Quiet(MotoRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Nothing on the terminal."""


@dataclass
class S3Server:
    """A running server: where it is, and what it has been asked."""

    port: int
    requests: Counter[str] = field(default_factory=Counter)
    """How many requests of each verb (GET, HEAD, PUT, POST, DELETE) since the start or `reset`."""
    keys: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The same by verb and path, the query left out: a listing is a GET of the bucket's path."""

    @property
    def endpoint(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use it."""
        return {"AWS_ENDPOINT_URL": f"http://{self.endpoint}"} | ALONE | CREDENTIALS

    @property
    def query(self) -> str:
        """The same address as the query of a URL; the credentials are not in it."""
        return f"?endpoint_override={self.endpoint}&scheme=http"

    def reset(self) -> None:
        """Count from zero."""
        self.requests.clear()
        self.keys.clear()

    def filesystem(self, **options: Any) -> pafs.S3FileSystem:
        """A client of its own, whatever the environment says."""
        return pafs.S3FileSystem(
            access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
            scheme="http",
            endpoint_override=self.endpoint,
            **options,
        )

    def make_bucket(self, name: str) -> None:
        """A bucket; harmless if it is there."""
        self.filesystem(allow_bucket_creation=True).create_dir(name)

    def upload(self, local: Path, where: str) -> None:
        """Put the files below a local folder into `bucket/prefix`."""
        for path in sorted(item for item in local.rglob("*") if item.is_file()):
            with self.filesystem().open_output_stream(
                f"{where}/{path.relative_to(local).as_posix()}", compression=None
            ) as stream:
                stream.write(path.read_bytes())


@contextmanager
def serving() -> Iterator[S3Server]:
    """A server in a thread of this process, empty, on a free port. One at a time: they would share their buckets."""
    backend = DomainDispatcherApplication(create_backend_app)
    found: list[S3Server] = []

    def counted(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        verb = environ["REQUEST_METHOD"]
        found[0].requests[verb] += 1
        found[0].keys[verb, environ["PATH_INFO"]] += 1
        return backend(environ, start_response)  # type: ignore[no-any-return]

    http = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=_Quiet)
    found.append(S3Server(http.server_port))
    thread = Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        # Moto keeps its buckets for the process, not for the server.
        urlopen(Request(f"http://{found[0].endpoint}/moto-api/reset", method="POST")).close()
        found[0].reset()
        yield found[0]
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@contextmanager
def environment_of(server: S3Server) -> Iterator[None]:
    """This process, and those that it starts, use the server meanwhile."""
    with mock.patch.dict(os.environ, server.environment):
        yield
