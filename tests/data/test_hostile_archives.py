"""No archive, whatever it claims or was made into, costs memory, an end without a reason, or a crash."""

import struct
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damcli.data.archives import content, kind, members
from damcli.errors import DataError

TARS = {"": "tar", "gz": "gzip", "bz2": "bzip2", "xz": "xz"}


# What hostile archives may take of memory, in a process that has no more.
MEMORY = """
import resource, sys
from pathlib import Path
from damcli.data import archives
from damcli.errors import DataError
archives.STREAM_LIMIT = 2**24
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
resource.setrlimit(resource.RLIMIT_DATA, (int(status["VmData"].split()[0]) * 1024 + 96 * 2**20,) * 2)
path = Path(sys.argv[1])
for member in archives.members(path, archives.form(path)):
    try:
        print(member.name, member.refusal or len(archives.content(member.place)), sep="|")
    except DataError as error:
        print(member.name, error.what, sep="|")
"""


def bounded(path: Path) -> list[list[str]]:
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, timeout=100, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


BOMB = 80 << 20
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to bound a process")


@needs_proc
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_bombs(tmp_path, method, zipped):
    """One that says that it is small, one that is and says that it is huge, and one that does not lie."""
    path = zipped(tmp_path / "x.zip", {"small": bytes(BOMB), "huge": b"1", "good": bytes(2**23)}, method)
    data = bytearray(path.read_bytes())
    small, huge, _ = (at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2")
    struct.pack_into("<I", data, small + 24, 1000)
    struct.pack_into("<I", data, huge + 24, 2**32 - 2)
    path.write_bytes(data)
    if method == zipfile.ZIP_BZIP2:
        assert all("compressed by bzip2" in line[1] for line in bounded(path))
    else:
        assert bounded(path) == [
            ["small", "it is damaged in the archive"],
            ["huge", "the file is larger than 2 GiB"],
            ["good", str(2**23)],
        ]


@needs_proc
def test_tar_bombs(tmp_path, add):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", compresslevel=1) as archive:
        add(archive, "first", b"1")
        add(archive, "large", bytes(BOMB))
        add(archive, "last", b"2")
    first, large, last = bounded(tmp_path / "x.tar.gz")
    assert (first, last) == (["first", "1"], ["last", "1"])
    assert "larger than 16 MiB" in large[1]


@needs_proc
@pytest.mark.parametrize("kind_of_header", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_any_length(tmp_path, kind_of_header, add):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", compresslevel=1) as archive:
        add(archive, "first", b"1")
        add(archive, "header", bytes(BOMB), type=kind_of_header)
        add(archive, "last", b"2")
    first, end = bounded(tmp_path / "x.tar.gz")
    assert first == ["first", "1"]
    assert "its first 1 files" in end[1]


def test_headers_without_end_and_those_that_lead_backwards(tmp_path, tarred):
    chain = b"".join(header("x", size=1, type=tarfile.GNUTYPE_LONGNAME) + bytes(512) for _ in range(1200))
    negative = header("x", size=1, type=tarfile.XHDTYPE) + b"21 size=-100000000\n\n".ljust(512, b"\0") + header("y")
    sparse = header("x", size=512, type=tarfile.GNUTYPE_SPARSE)
    whole = tarred(tmp_path / "x").read_bytes()
    for data in (chain, negative, sparse):
        for prefix in (b"", whole[:1024]):
            (tmp_path / "x.tar").write_bytes(prefix + data + whole)
            listed = list(members(tmp_path / "x.tar", "tar"))
            assert len(listed) <= 8
            assert any(member.refusal for member in listed)


def header(name: str, **fields) -> bytes:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.fixture(scope="session")
def wholes(tmp_path_factory, zipped, tarred) -> list[bytes]:
    folder = tmp_path_factory.mktemp("wholes")
    return [zipped(folder / "x").read_bytes(), *(tarred(folder / "x", packed=packed).read_bytes() for packed in TARS)]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_archives_give_members_or_a_reason(wholes, tmp_path, data):
    which = data.draw(st.integers(0, len(wholes) - 1))
    archive = bytearray(wholes[which])
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x"
    path.write_bytes(archive)
    listed = list(members(path, ["zip", *TARS.values()][which]))
    assert listed
    for member in listed:
        assert member.name or member.refusal
        with suppress(DataError):  # anything else is a crash
            assert isinstance(content(member.place), bytes)
    assert kind(bytes(archive)) in (None, "zip", *TARS.values())
