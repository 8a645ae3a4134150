"""Pseudonyms: what leaves damcli carries, instead of an identifier, a hash of it keyed by the user's own secret.

Who does not have the secret cannot find the identifier by trying all there may be, as is easily done with a plain hash
of patient numbers. Who has it gets the same pseudonym everywhere, on any machine, so that tables can be joined.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

from damcli.errors import MachineError, UsageError

VARIABLE = "DAMCLI_SECRET"
LEAST = 16  # characters of a secret
DIGITS = 16  # of a pseudonym: 64 bits, so that two of a million identifiers are alike once in 40 million times


def secret() -> bytes:
    """Return the secret: `$DAMCLI_SECRET`, else that in the user's settings folder, which is made at first use.

    Raises `UsageError` for a secret of less than 16 characters, `MachineError` where the file cannot be read or made.
    """
    if VARIABLE in os.environ:
        return _checked(os.fsencode(os.environ[VARIABLE]), f"${VARIABLE}", "set a longer one, or unset it")
    path = secret_path()
    try:
        content = path.read_bytes() if path.exists() else _made(path)
    except OSError as error:
        raise MachineError(
            f"the secret that pseudonyms are made with cannot be read or written: {error.strerror}",
            where=path,
            fix=f"set {VARIABLE} to {LEAST} characters or more (the same each time: pseudonyms depend on it)",
        ) from error
    return _checked(content, path, "put the right one in its place, or delete it: pseudonyms will then be new ones")


def secret_path() -> Path:
    """Return where the secret lies: in damcli's folder in the one where the platform keeps a user's settings.

    Raises `MachineError` where the user has no home.
    """
    try:
        if sys.platform == "win32":
            folder = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
        elif sys.platform == "darwin":
            folder = Path.home() / "Library" / "Application Support"
        else:
            # A relative one is to be ignored, by the XDG base directory specification.
            given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
            folder = given if given.is_absolute() else Path.home() / ".config"
    except RuntimeError as error:
        raise MachineError(
            "there is no home folder to keep the secret in that pseudonyms are made with",
            fix=f"set {VARIABLE} to {LEAST} characters or more",
        ) from error
    return folder / "damcli" / "secret"


def pseudonym(secret: bytes, kind: str, value: str) -> str:
    """Return the pseudonym of `value`: the first 16 hex digits of HMAC-SHA256(secret, kind NUL value); "" for "".

    `kind` keeps apart what only looks alike: patient 7 and study 7 (HMAC: RFC 2104).

    >>> pseudonym(b"a secret for tests", "patient", "7")
    '8fb7a658c5e73bd6'
    >>> pseudonym(b"a secret for tests", "patient", "")
    ''
    """
    if not value:
        return ""
    # Names of files may hold bytes that are no UTF-8, as surrogates.
    message = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
    return hmac.new(secret, message, hashlib.sha256).hexdigest()[:DIGITS]


def _checked(content: bytes, where: object, fix: str) -> bytes:
    found = content.strip()
    if len(found.decode("utf-8", "replace")) < LEAST:
        raise UsageError(f"this secret is shorter than {LEAST} characters", where=where, fix=fix)
    return found


def _made(path: Path) -> bytes:
    """Write a new secret, whole and for the user's eyes only, and return what is there: of two writers the first's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(f"{secrets.token_hex(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    return path.read_bytes()
