"""Pseudonyms by the definition of HMAC, and a secret that is made once, whole, and for the user's eyes only."""

from __future__ import annotations

import hashlib
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.dicom import privacy
from damcli.errors import MachineError, UsageError

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # with half characters, as odd file names have


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's settings folder, empty; nothing in the environment names a secret."""
    monkeypatch.delenv("DAMCLI_SECRET", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path / "settings"


@given(st.binary(min_size=16, max_size=64), ANY_TEXT.filter(bool))
def test_a_pseudonym_is_an_hmac(secret: bytes, value: str) -> None:
    key = secret.ljust(64, b"\0")
    message = b"patient\0" + value.encode("utf-8", "surrogatepass")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + message).digest()
    expected = hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()
    assert privacy.pseudonym(secret, "patient", value) == expected[:16]


def test_pseudonyms_tell_secrets_kinds_and_values_apart() -> None:
    made = {
        privacy.pseudonym(secret, kind, value)
        for secret in (b"0123456789abcdef", b"0123456789abcdeg")
        for kind in ("patient", "study", "path")
        for value in ("7", "07", "7 ")
    }
    assert len(made) == 18
    assert privacy.pseudonym(b"0123456789abcdef", "patient", "") == ""


def test_the_secret_of_the_environment_goes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_file = privacy.secret()
    monkeypatch.setenv("DAMCLI_SECRET", " sixteen letters. \n")
    assert privacy.secret() == b"sixteen letters."
    monkeypatch.setenv("DAMCLI_SECRET", privacy.secret_path().read_text())
    assert privacy.secret() == of_file, "the file's content, given on another machine, is the same secret"


@pytest.mark.parametrize("short", ["", " " * 20, "fifteen letters", "äöü" * 5])
def test_a_short_secret_is_refused(short: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAMCLI_SECRET", short)
    with pytest.raises(UsageError, match="shorter than 16 characters") as refused:
        privacy.secret()
    assert not short.strip() or short not in str(refused.value)
    assert not home.exists()


def test_a_secret_is_made_at_first_use(home: Path) -> None:
    made = privacy.secret()
    file = home / "damcli" / "secret"
    assert [privacy.secret_path(), *file.parent.iterdir()] == [file, file]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(made) == 64
    assert bytes.fromhex(made.decode())
    assert privacy.secret() == made
    file.unlink()
    assert privacy.secret() != made


def test_of_many_writers_one_counts(home: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = set(pool.map(lambda _: privacy.secret(), range(64)))
    assert made == {privacy.secret()}
    assert [path.name for path in (home / "damcli").iterdir()] == ["secret"]


def test_a_damaged_secret_is_refused_and_kept(home: Path) -> None:
    file = home / "damcli" / "secret"
    file.parent.mkdir(parents=True)
    file.write_text("cut off")
    with pytest.raises(UsageError, match="shorter") as refused:
        privacy.secret()
    assert refused.value.where == file
    assert file.read_text() == "cut off"


def test_without_a_place_for_it_there_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file in the place of the settings")
    with pytest.raises(MachineError, match="set DAMCLI_SECRET to 16"):
        privacy.secret()
    home.unlink()
    (home / "damcli" / "secret").mkdir(parents=True)
    with pytest.raises(MachineError, match="set DAMCLI_SECRET to 16"):
        privacy.secret()


def test_each_platform_has_its_own_place(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/to/nothing")
    assert privacy.secret_path() == tmp_path / ".config/damcli/secret"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert privacy.secret_path() == tmp_path / "Library/Application Support/damcli/secret"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("APPDATA", str(tmp_path / "roaming"))
    assert privacy.secret_path() == tmp_path / "roaming/damcli/secret"
