"""A stand-in for the hub of data sets on loopback, for tests: what its own client asks to list and read one data set."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "0" * 40
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Hub(ThreadingHTTPServer):
    """One data set, `owner/name`, with files by their path."""

    name: str
    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, resolve = f"/api/datasets/{self.server.name}", f"/datasets/{self.server.name}/resolve/"
        if path.startswith(resolve):
            self._file(path.removeprefix(resolve).partition("/")[2])
        elif path.startswith(f"{api}/tree/"):
            self._tree(path.removeprefix(f"{api}/tree/").partition("/")[2])
        elif path == api:
            self._json({"id": self.server.name, "sha": REVISION, "siblings": [{"rfilename": name} for name in self.server.files]})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _tree(self, folder: str) -> None:
        found = list(self._entries(f"{folder}/" if folder else ""))
        self._json(found) if found else self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _entries(self, prefix: str) -> Iterator[dict[str, Any]]:
        """The files below a folder, and the folders."""
        for name, content in self.server.files.items():
            if name.startswith(prefix):
                yield {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        for folder in sorted({name.rpartition("/")[0] for name in self.server.files} - {""}):
            yield {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}

    def _file(self, name: str) -> None:
        content = self.server.files.get(name)
        if content is None:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        marks = {"ETag": '"0"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes", "Last-Modified": formatdate(usegmt=True)}
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            marks["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        self._answer(206 if wanted else 200, content, marks)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving_hub(name: str, files: Mapping[str, bytes]) -> Iterator[Hub]:
    """A hub with one data set."""
    with Hub(name, files) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
