"""The file system behind an address, with time-outs: no request waits for ever. Files are written there in one step."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, build_opener

import pyarrow.fs as pafs

from kd.addresses import Address
from kd.fingerprints import Writable

CONNECT_S = 3.0
READ_S = 3.0
"""So long a request waits for a connection, and for the next byte."""
ATTEMPTS = 3
"""So often a request is sent that is not answered, or refused for the moment. The waits between are 3 s at most in all. A service
that never answers is an error after 12 s where something is read, and after 30 s where it is written: there the client waits 6 s
longer each time.
"""
GS_URL = "https://storage.googleapis.com"
GS_RETRY_S = 10
"""So long a request to `gs://` is sent again. Its client has no time-out below 120 s, so each process asks the service once
whether it answers before it uses the client."""


def opened(address: Address) -> pafs.FileSystem:
    """The file system of an address; its `path` is the folder there.

    Raises:
        OSError, ValueError: there is no such kind of file system, or it does not answer.
    """
    options = address.options
    endpoint, scheme = options.get("endpoint_override"), options.get("scheme")
    if not address.scheme:
        return pafs.LocalFileSystem()
    if address.scheme == "s3":
        return _s3(address)
    if address.scheme == "gs":
        _check_answers(address.endpoint or GS_URL)
        limit = timedelta(seconds=GS_RETRY_S)
        anonymous = address.user == "anonymous" or scheme == "http"
        return pafs.GcsFileSystem(anonymous=anonymous, scheme=scheme, endpoint_override=endpoint, retry_time_limit=limit)
    if address.scheme == "hf":
        from huggingface_hub import HfFileSystem

        return pafs.PyFileSystem(pafs.FSSpecHandler(HfFileSystem(endpoint=address.endpoint)))
    return pafs.FileSystem.from_uri(address.url)[0]


def _s3(address: Address) -> pafs.S3FileSystem:
    """Amazon is asked for the region of a bucket there; other services have one, or go by the environment."""
    options = dict(address.options)
    if "endpoint_override" not in options and "region" not in options:
        options["region"] = pafs.resolve_s3_region(address.path.partition("/")[0])
    return pafs.S3FileSystem(
        **options,
        connect_timeout=CONNECT_S,
        request_timeout=READ_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small file is then one request
    )


class _NoRedirect(HTTPRedirectHandler):
    """A redirect is an answer; where it leads may be out of a cluster's reach."""

    def redirect_request(self, *_: object) -> None:
        return None


def _check_answers(url: str) -> None:
    """Ask a web service for its first page; any answer will do. Raises OSError if none comes."""
    try:
        build_opener(_NoRedirect).open(url, timeout=ATTEMPTS * READ_S).close()
    except HTTPError as refused:
        refused.close()
    except (OSError, HTTPException) as error:
        raise OSError(f"no answer from {url}: {getattr(error, 'reason', error)}") from error


def has_bucket(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether the bucket of a path is there; also where nobody may ask, as rights may end at the path. Raises OSError."""
    try:
        found = filesystem.get_file_info(path.partition("/")[0] or "/")
    except OSError as error:
        if "ACCESS_DENIED" not in str(error):
            raise
        return True
    return bool(found.type != pafs.FileType.NotFound)


def delete_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """Delete a folder with all that is in it, if it is there. Raises OSError."""
    try:
        filesystem.delete_dir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if "No such directory" not in str(error):  # so the client of gs:// says that there is none
            raise


@contextmanager
def replacing(path: Path) -> Iterator[Writable]:
    """A stream to a temporary file; it takes the place of a local file, in one step, when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def uploading(filesystem: pafs.FileSystem, target: str) -> Iterator[Writable]:
    """A stream into an object. To close it is to publish it, so one that is broken off is taken away again."""
    stream = filesystem.open_output_stream(target, compression=None)
    try:
        yield stream
    except BaseException:
        with suppress(OSError):
            stream.close()
            filesystem.delete_file(target)
        raise
    stream.close()
