"""The file system behind an address, with time-outs: no request waits for ever."""

from datetime import timedelta

import pyarrow.fs as pafs

from kd.addresses import Address

CONNECT_S = 3.0
READ_S = 4.0
"""So long a request waits for a connection, and for the next byte."""
ATTEMPTS = 4
"""So often a request is sent that is not answered, or refused for the moment. The waits between are 7 s at most in all, so that a
service that never answers is an error after 23 s."""
GS_RETRY = timedelta(seconds=10)


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
        anonymous = address.user == "anonymous" or scheme == "http"
        return pafs.GcsFileSystem(anonymous=anonymous, scheme=scheme, endpoint_override=endpoint, retry_time_limit=GS_RETRY)
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
