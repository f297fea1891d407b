"""What a file system refuses, as an error of this project's that says which path, why, and what to do."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from kd.errors import StoreError

log = logging.getLogger(__name__)


@contextmanager
def allowed(act: str, path: str) -> Iterator[None]:
    """What a file system refuses inside, as a StoreError that says which path, why, and what to do."""
    try:
        yield
    except OSError as error:
        advice = "check the path, the credentials and the free space, then run it again"
        raise StoreError(f"cannot {act} {path}: {error}; {advice}") from error


@contextmanager
def readable(path: str) -> Iterator[None]:
    """The same for a file that a stage has written."""
    with allowed("read", path):
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(f"{path} is not there; run the stage that writes it") from error
        except pa.ArrowInvalid as error:
            raise StoreError(f"{path} is not a whole Parquet file: {error}; delete it and run the stage again") from error


@contextmanager
def written(path: str) -> Iterator[None]:
    """The same for a folder that libraries write a model into."""
    with allowed("write", path):
        try:
            yield
        except Exception as error:
            if "(os error " not in str(error):  # so safetensors and tokenizers tell what the system refuses them
                raise
            raise OSError(str(error)) from error


@contextmanager
def tolerated() -> Iterator[None]:
    """What the run directory refuses inside costs nothing that matters: it is a warning, and the rest is left out."""
    try:
        yield
    except StoreError as error:
        log.warning("%s", error)
