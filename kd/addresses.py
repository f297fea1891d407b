"""Addresses of folders on any file system: a local path, `s3://`, `gs://`, and for reading `hf://`.

A URL may end in a query that says where its service answers: `s3://bucket/prefix?endpoint_override=host:port&scheme=http`.
`settled` writes what this process's environment says of that into the address, so that it means the same on every machine.
Credentials are no part of an address: each machine finds its own, as the service's own clients do.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

_QUERY = re.compile(r"\?([a-z_]+=[^?&]*(?:&[a-z_]+=[^?&]*)*)$")
_OPTIONS = {
    "s3": ("endpoint_override", "scheme", "region", "tls_ca_file_path"),
    "gs": ("endpoint_override", "scheme"),
    "hf": ("endpoint_override", "scheme"),
}
_ENDPOINTS = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "gs": ("STORAGE_EMULATOR_HOST",), "hf": ("HF_ENDPOINT",)}
"""The variables of the environment that each service's own clients read, the strongest first."""
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


class Address(NamedTuple):
    """An address taken apart. `path` is that in its file system; `scheme` is empty for a local one."""

    scheme: str
    user: str
    path: str
    options: Mapping[str, str]

    @classmethod
    def of(cls, url: str) -> "Address":
        """The parts of a local path or a URL. Raises ValueError for credentials and unknown options, and does not repeat them."""
        if "://" not in url:
            return cls("", "", url, {})
        front, query = without_query(url)
        scheme, _, rest = front.partition("://")
        host, slash, below = rest.partition("/")
        user, _, bucket = host.rpartition("@")
        options = dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True))
        return cls(scheme, user, f"{bucket}{slash}{below}".rstrip("/"), options).checked()

    def checked(self) -> "Address":
        """The same. Raises ValueError like `of`."""
        if self.user not in ("", "anonymous") or "@" in self.options.get("endpoint_override", ""):
            raise ValueError(
                "a URL must hold no credentials; take them out, and hand them over as the service's own clients read them, such"
                " as in environment variables"
            )
        known = _OPTIONS.get(self.scheme, ())
        unknown = sorted(self.options.keys() - set(known))
        if unknown:
            raise ValueError(f"{self.bare} has the unknown option {unknown[0]!r}; expected {', '.join(known) or 'none'}")
        return self

    @property
    def bare(self) -> str:
        """The URL without its query: what a person knows the folder by."""
        return f"{self.scheme}://{self.user and self.user + '@'}{self.path}" if self.scheme else self.path

    @property
    def url(self) -> str:
        """The whole address."""
        return self.bare + (f"?{urlencode(self.options, safe=':/')}" if self.options else "")

    @property
    def endpoint(self) -> str | None:
        """Where the service answers, as a URL; None for the service that the scheme stands for."""
        host = self.options.get("endpoint_override")
        return host and f"{self.options.get('scheme', 'https')}://{host}"

    def below(self, relative: str) -> "Address":
        """Something in the folder."""
        return self._replace(path=f"{self.path}/{relative}" if relative else self.path)

    def __str__(self) -> str:
        return f"{self.bare} at {self.endpoint}" if self.endpoint else self.bare


def without_query(url: str) -> tuple[str, str]:
    """A URL, and its query with the question mark; a local path as it is, since a question mark there is part of a name."""
    found = _QUERY.search(url) if "://" in url else None
    return (url[: found.start()], found.group()) if found else (url, "")


def checked_url(url: str) -> str:
    """The same URL or local path. Raises ValueError like `Address.of`."""
    Address.of(url)
    return url


def settled(url: str) -> Address:
    """An address that means the same on every machine: with the endpoint and the region that this process's environment sets.

    What the URL says itself is stronger. Raises ValueError like `Address.of`.
    """
    address = Address.of(url)
    options = dict(address.options)
    if "endpoint_override" not in options:
        options |= _endpoint_options(_first_set(_ENDPOINTS.get(address.scheme, ())))
    region = _first_set(_REGIONS)
    if address.scheme == "s3" and "endpoint_override" in options and region:
        options.setdefault("region", region)
    return address._replace(options=options).checked()


def _first_set(names: Sequence[str]) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _endpoint_options(endpoint: str) -> dict[str, str]:
    """An endpoint's URL as options; without a scheme it is spoken to in plain text, as emulators are."""
    if not endpoint:
        return {}
    scheme, sign, host = endpoint.rpartition("://")
    return {"endpoint_override": host.rstrip("/"), "scheme": scheme if sign else "http"}
