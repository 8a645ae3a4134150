"""Other machines' files by fsspec: URLs, how they may be shown, and what goes wrong there in words of ours.

Whatever a file system raises is told by its kind alone, never by its text: that may quote keys and signed URLs.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from damcli import files
from damcli.errors import DamcliError, MachineError, UsageError

# A write there is whole or not at all, folders are but names, and to rename is to copy.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "tos", "oci"}
_CODES = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, TimeoutError: errno.ETIMEDOUT}
_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+)://(?:(?P<user>[^/:@]*:[^/]*)@)?(?P<rest>.*)", re.DOTALL)
_QUERY = re.compile(r"\?[^?]*=.*", re.DOTALL)


class Far(NamedTuple):
    """A path in one of fsspec's file systems, in its own form: without the protocol, mostly without a / at the end."""

    system: Any
    path: str

    @property
    def has_objects(self) -> bool:
        """Whether it is an object store: see `OBJECT_STORES`."""
        protocol = self.system.protocol
        return not OBJECT_STORES.isdisjoint([protocol] if isinstance(protocol, str) else protocol)

    @property
    def parent(self) -> str:
        """The folder that it lies in; "" for a bucket."""
        return self.path.rpartition("/")[0]

    def below(self, name: str) -> str:
        """Return the path of what is called `name` in this folder."""
        return f"{self.path.rstrip('/')}/{name}"


def is_url(text: str) -> bool:
    """Whether this is a URL and no path.

    >>> is_url("s3://bucket/scans"), is_url("scans/a.png"), is_url("C:/scans")
    (True, False, False)
    """
    return _URL.fullmatch(text) is not None


def shown(url: str) -> str:
    """Return a URL as it may be shown: without password (and the user that it belongs to), query, and / at the end.

    >>> shown("s3://key:secret@bucket/scans/"), shown("https://host/scans?token=1")
    ('s3://bucket/scans', 'https://host/scans')
    """
    found = _URL.fullmatch(url)
    assert found is not None, "this is no URL"
    rest = _QUERY.sub("", found["rest"])
    return f"{found['protocol']}://{rest.rstrip('/')}"


def opened(url: str) -> Far:
    """Return the file system of a URL and its path there; connections are kept for this process.

    Raises `MachineError` that names the package where one is missing, `UsageError` for a URL that means nothing.
    """
    return _opened(url, os.getpid())


@lru_cache(maxsize=16)
def _opened(url: str, process: int) -> Far:
    import fsspec

    found = _URL.fullmatch(url)
    assert found is not None, "this is no URL"
    protocol, user = found["protocol"].lower(), found["user"]
    if _QUERY.search(url):
        fix = "leave it out: credentials are found by the settings that the package of the file system reads"
        raise UsageError("this URL has a query (?…=…), which would be in all names", where=shown(url), fix=fix)
    host = found["rest"].partition("/")[0]
    if ":" in host and not re.fullmatch(r".*:\d+|\[.*\]|arn:.*|.*@[^@:]*", host):
        fix = "write a / in a password as %2F, or leave it to the settings that the package of the file system reads"
        raise UsageError(f"this {protocol}:// URL cannot be understood before its first /", fix=fix)
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        what = f"{protocol}:// needs a package that is not installed here"
        raise MachineError(what, where=shown(url), fix=str(error)) from None
    except ValueError:
        known = "s3://, gs://, abfs://, sftp://, … by the packages that fsspec knows"
        raise UsageError(f"no file system is called {protocol}", where=shown(url), fix=known) from None
    options: dict[str, Any] = {}
    if user and protocol in ("s3", "s3a"):  # whose package takes them as options alone
        options["key"], options["secret"] = map(unquote, user.split(":", 1))
        url = f"{protocol}://{found['rest']}"
    with asking(shown(url)):
        options |= kind._get_kwargs_from_urls(url)
        path = str(kind._strip_protocol(url))
        # Listings that are kept would be old ones, and would grow with the number of files.
        system = kind(**options, use_listings_cache=False, skip_instance_cache=True)
    if not path:
        raise UsageError("this URL names no folder", where=shown(url))
    return Far(system, path)


@contextmanager
def asking(where: str) -> Iterator[None]:
    """Turn what a file system raises into `UsageError` (nothing there, no permission) or `MachineError`.

    `where` is a URL as it may be shown. For the file system's calls alone: it takes a bug for a failure of theirs.
    """
    try:
        yield
    except DamcliError:
        raise
    except FileNotFoundError:
        raise UsageError("there is no such bucket, folder or file", where=where) from None
    except PermissionError:
        fix = "check the credentials that the package of this file system finds, and what they allow"
        raise UsageError("access to this is denied", where=where, fix=fix) from None
    except Exception as error:
        fix = "check the network, the address and the credentials, then run the same command again"
        raise MachineError(f"the file system fails: {reason(error)}", where=where, fix=fix) from None


def reason(error: Exception) -> str:
    """Return why a file system failed: what the operating system calls it, or else the name of the error.

    >>> reason(PermissionError("key AKIA… may not read this"))
    'Permission denied'
    """
    code = getattr(error, "errno", None)
    code = code or next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    return os.strerror(code) if isinstance(code, int) else type(error).__name__


def private(kind: str) -> Path:
    """Return the folder `kind` of what is kept on this disk of other machines' files, readable by its user only."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (given if given.is_absolute() else Path.home() / ".cache") / "damcli" / kind
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    return folder


@contextmanager
def told(names: dict[Path, str]) -> Iterator[None]:
    """Call, in errors that pass, the paths on this disk by what the user gave."""

    def said(text: str) -> str:
        for path, name in names.items():
            text = text.replace(str(path), name)
        return text

    try:
        yield
    except DamcliError as error:
        error.what = said(error.what)
        error.where = None if error.where is None else said(str(error.where))
        error.fix = error.fix and said(error.fix)
        error.args = (said(str(error)),)
        raise
