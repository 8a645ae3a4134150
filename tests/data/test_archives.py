"""Archives are read in place: every file in them is a member, whatever was done to them, and none costs memory."""

import bz2
import gzip
import lzma
import os
import random
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from damcli.data import archives
from damcli.data.archives import Place, content, form, kind, members
from damcli.errors import DataError

TARS = {"": "tar", "gz": "gzip", "bz2": "bzip2", "xz": "xz"}
FILES = {"a/1.dcm": b"one", "a/2.dcm": bytes(range(256)) * 40, "b.png": b"", "c/d/e": b"x" * 1024}


def found(path: Path) -> list[archives.Member]:
    which = form(path)
    assert which is not None
    return list(members(path, which))


def contents(path: Path) -> dict[str, bytes]:
    return {member.name: content(member.place) for member in found(path) if not member.refusal}


def rest(path: Path) -> str:
    """The reason of the one row for what cannot be read, which is the last."""
    listed = found(path)
    assert [member.name for member in listed].count("") == 1
    assert listed[-1].name == ""
    return listed[-1].refusal


@pytest.mark.parametrize("method", archives.METHODS)
def test_a_zip_of_every_method(tmp_path, method, zipped):
    path = zipped(tmp_path / "x.zip", method=method)
    assert contents(path) == FILES
    assert [member.name for member in found(path)] == list(FILES)


@pytest.mark.parametrize("packed", TARS)
@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_every_kind(tmp_path, packed, layout, tarred):
    files = FILES | {"ü/" + "long" * 24 + ".dcm": b"long"}
    if layout != tarfile.USTAR_FORMAT:
        files |= {"deep/" * 80 + "x": b"deep"}
    path = tarred(tmp_path / "x", files, packed, layout)
    assert form(path) == TARS[packed]
    assert contents(path) == files
    assert [member.name for member in found(path)] == list(files)


def test_a_tar_without_any_magic(tmp_path, tarred):
    data = bytearray(tarred(tmp_path / "x", {"old": b"v7"}, layout=tarfile.USTAR_FORMAT).read_bytes())
    data[257:512] = bytes(255)
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    (tmp_path / "x").write_bytes(data)
    assert contents(tmp_path / "x") == {"old": b"v7"}


def test_packed_in_several_streams(tmp_path, tarred):
    """As pigz, bgzip and `cat` write them."""
    data = tarred(tmp_path / "x").read_bytes()
    for suffix, pack in {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.items():
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(pack(data[:700]) + pack(data[700:]))
        assert contents(path) == FILES


def test_what_is_an_archive_its_content_says(tmp_path, zipped):
    path = zipped(tmp_path / "scans.dcm")
    assert form(path) == "zip"
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "one.tar.gz").write_bytes(gzip.compress(b"a single scan"))
    dicom = bytearray(path.read_bytes())
    dicom[128:132] = b"DICM"
    (tmp_path / "dicom.zip").write_bytes(dicom)
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "gone.zip").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.tar").touch()
    names = ("text.zip", "one.tar.gz", "dicom.zip", "pipe.zip", "gone.zip")
    assert [form(tmp_path / name) for name in names] == [None] * 5


def test_a_zip_is_known_by_its_end_too(tmp_path, zipped):
    whole = zipped(tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(b"MZ a program that unpacks itself" + whole)
    assert contents(tmp_path / "x.zip") == FILES
    (tmp_path / "x.zip").write_bytes(whole[len(whole) // 2 :])
    first, *_, last = found(tmp_path / "x.zip")  # the last of several parts: it holds the directory of all
    assert content(last.place) == FILES[last.name]
    with pytest.raises(DataError):
        content(first.place)


def test_a_file_of_nothing_or_zeros_that_is_called_an_archive_is_not_passed_over(tmp_path):
    (tmp_path / "empty.tar").touch()
    (tmp_path / "zeros.zip").write_bytes(bytes(5000))
    assert "cut off" in rest(tmp_path / "empty.tar")
    assert "holds no file" in rest(tmp_path / "zeros.zip")
    (tmp_path / "zeros.dcm").write_bytes(bytes(5000))
    assert form(tmp_path / "zeros.dcm") is None


@pytest.mark.parametrize(
    "name", ["a.zip", "A.ZIP", "a.tar", "a.tar.gz", "a.TGZ", "a.tar.bz2", "a.tbz2", "a.txz", "a.b.tar.xz"]
)
def test_names_of_archives(name):
    assert archives.named(Path(name))


@pytest.mark.parametrize(
    "name", ["a.dcm", "zip", ".zip", "a.gz", "a.nii.gz", "tar", "a.tar.png", "a.zip.csv", "a.docx"]
)
def test_names_of_other_files(name):
    assert not archives.named(Path(name))


def test_kinds_that_may_hold_scans_and_documents_that_do_not(tmp_path, zipped, tarred):
    def packed(files):
        return zipped(tmp_path / "x", files).read_bytes()

    assert kind(packed(FILES)) == "zip"
    assert kind(packed(FILES)[:100]) == "zip", "a cut off one has no directory that tells of a document"
    for document in ("[Content_Types].xml", "META-INF/MANIFEST.MF", "mimetype"):
        assert kind(packed({"docProps/app.xml": b"", document: b""})) is None
    assert kind(tarred(tmp_path / "x").read_bytes()) == "tar"
    assert [kind(pack(b"")) for pack in (gzip.compress, bz2.compress, lzma.compress)] == ["gzip", None, "xz"]
    assert kind(bz2.compress(b"x")) == "bzip2"
    assert kind(b"7z\xbc\xaf\x27\x1c\0\4") == "7z"
    assert kind(b"Rar!\x1a\x07\x01\0") == "RAR"
    assert kind(b"\x28\xb5\x2f\xfd\0") == "zstd"
    assert kind(bytes(32769) + b"CD001\1" + bytes(2000)) == "ISO"
    assert [kind(data) for data in (b"", b"PK", bytes(512), bytes(40000), b"a,b\n" * 300, b"\x1f\x8b")] == [None] * 6


def test_directories_are_no_members_and_links_are_refused(tmp_path, add):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "folder", type=tarfile.DIRTYPE)
        add(archive, "folder/a", b"a")
        add(archive, "hard", type=tarfile.LNKTYPE, linkname="folder/a")
        add(archive, "soft", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "pipe", type=tarfile.FIFOTYPE)
        add(archive, "disk", type=tarfile.BLKTYPE)
        add(archive, "last", b"z")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder\\", b"")
        link = zipfile.ZipInfo("soft")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("last", b"z")
        archive.writestr("hidden/", b"data in a directory")
    listed = found(tmp_path / "x.tar")
    assert [member.name for member in listed] == ["folder/a", "hard", "soft", "pipe", "disk", "last"]
    assert ["link" in member.refusal for member in listed] == [False, True, True, False, False, False]
    assert ["device" in member.refusal for member in listed] == [False, False, False, True, True, False]
    assert contents(tmp_path / "x.tar") == {"folder/a": b"a", "last": b"z"}
    assert [(member.name, "link" in member.refusal) for member in found(tmp_path / "x.zip")] == [
        ("soft", True), ("last", False), ("hidden/", False)
    ]  # fmt: skip


def test_names_of_any_bytes(tmp_path, zipped, tarred):
    odd = os.fsdecode(b"M\xfcller.dcm")
    for layout in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert contents(tarred(tmp_path / "x.tar", {odd: b"1", "é": b"2"}, layout=layout)) == {odd: b"1", "é": b"2"}
    names = {"Röntgen/é.dcm": "Röntgen/é.dcm".encode(), "M\u2560ller": b"M\xccller", "a/b": b"a\\b"}
    path = zipped(
        tmp_path / "x.zip", {f"{number}".rjust(len(raw), "_"): b"" for number, raw in enumerate(names.values())}
    )
    data = path.read_bytes()
    for number, raw in enumerate(names.values()):
        data = data.replace(f"{number}".rjust(len(raw), "_").encode(), raw)
    path.write_bytes(data)
    assert [member.name for member in found(path)] == list(names), "UTF-8 without its mark, code page 437, Windows"
    assert set(contents(path)) == set(names)


def test_repeated_names_are_members_of_their_own(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in (b"first", b"second"):
            archive.writestr("same", data)
    assert [content(member.place) for member in found(tmp_path / "x.zip")] == [b"first", b"second"]


def test_encrypted_and_unknown_compressions_are_refused_one_by_one(tmp_path, zipped):
    path = zipped(tmp_path / "x.zip", {"a": b"a" * 99, "b": b"b" * 99, "c": b"c" * 99})
    data = bytearray(path.read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2"]
    data[entries[0] + 8] |= 1
    struct.pack_into("<H", data, entries[1] + 10, 9)
    path.write_bytes(data)
    refusals = [member.refusal for member in found(path)]
    assert "encrypted" in refusals[0]
    assert "Deflate64" in refusals[1]
    assert refusals[2] == ""
    assert contents(path) == {"c": b"c" * 99}
    for member in found(path)[:2]:
        with pytest.raises(DataError, match="unpack the archive"):
            content(member.place)


@pytest.mark.parametrize("method", archives.METHODS)
def test_a_flipped_byte_of_a_zip_costs_its_member_alone(tmp_path, method, zipped):
    payload = random.Random(3).randbytes(500)
    path = zipped(tmp_path / "x.zip", {"a": payload, "b": b"good"}, method)
    data = bytearray(path.read_bytes())
    data[300] ^= 4
    path.write_bytes(data)
    first, second = found(path)
    with pytest.raises(DataError, match="it is damaged in the archive"):
        content(first.place)
    assert content(second.place) == b"good"


@pytest.mark.parametrize("packed", TARS)
def test_a_tar_cut_off_anywhere_gives_what_is_whole_and_one_row_for_the_rest(tmp_path, packed, tarred):
    rng = random.Random(1)
    files = {f"{number}.dcm": rng.randbytes(700) for number in range(6)}
    whole = tarred(tmp_path / "whole", files, packed).read_bytes()
    counts = set()
    for cut in sorted({0, 100, 511, 512, 513, *range(1024, len(whole), 509), len(whole) - 1}):
        path = tmp_path / "x"
        path.write_bytes(whole[:cut])
        listed = list(members(path, TARS[packed]))
        good = {member.name: content(member.place) for member in listed if not member.refusal}
        assert good == dict(list(files.items())[: len(good)])
        counts.add(len(good))
        if listed[-1].name == "":
            assert len(listed) == len(good) + 1
        else:  # nothing but zeros behind the end mark is missing
            assert good == files
            assert not packed
            assert cut > 6 * 1536
    assert counts >= {0, 6}


@pytest.mark.parametrize("packed", TARS)
def test_a_tar_without_its_end_mark_may_be_cut_off(tmp_path, packed, tarred):
    data = tarred(tmp_path / "x").read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    pack = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[packed]
    (tmp_path / "x").write_bytes(pack(data))
    assert "its first 4 files" in rest(tmp_path / "x")
    assert contents(tmp_path / "x") == FILES


def test_a_damaged_header_is_not_the_end(tmp_path, tarred):
    data = bytearray(tarred(tmp_path / "x").read_bytes())
    data[1024 + 10] ^= 1
    (tmp_path / "x").write_bytes(data)
    assert "its first 1 files" in rest(tmp_path / "x")
    assert contents(tmp_path / "x") == {"a/1.dcm": b"one"}


def test_a_second_archive_behind_the_end_is_not_passed_over(tmp_path, tarred):
    data = tarred(tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data + data)
    assert "its first 4 files" in rest(tmp_path / "x")
    (tmp_path / "x").write_bytes(gzip.compress(data) + b"what is this")
    assert "its first 4 files" in rest(tmp_path / "x")


def test_gzip_is_checked_to_its_end(tmp_path, tarred):
    data = bytearray(gzip.compress(tarred(tmp_path / "x").read_bytes()))
    data[-8] ^= 1  # of the CRC
    (tmp_path / "x").write_bytes(data)
    assert "cut off or damaged" in rest(tmp_path / "x")


def test_a_zip_without_its_directory_is_one_row(tmp_path, zipped):
    data = zipped(tmp_path / "x.zip").read_bytes()
    for cut in range(4, len(data) - 1, 37):
        (tmp_path / "x.zip").write_bytes(data[:cut])
        assert "its files are missing here" in rest(tmp_path / "x.zip")
        with pytest.raises(DataError, match="cut off or damaged"):
            content(Place(tmp_path / "x.zip", member=0))


def test_archives_without_a_file_are_one_row(tmp_path, zipped, tarred):
    for path in (
        zipped(tmp_path / "x.zip", {}),
        zipped(tmp_path / "y.zip", {"folder/": b""}),
        tarred(tmp_path / "x.tar", {}),
    ):
        assert rest(path) == "the archive holds no file"


def test_an_archive_that_changed_since_it_was_listed(tmp_path, zipped, tarred):
    path = zipped(tmp_path / "x.zip")
    last = found(path)[-1].place
    assert content(last) == FILES["c/d/e"]
    zipped(path, {"only": b"1"})
    with pytest.raises(DataError):
        content(last)
    path = tarred(tmp_path / "x.tar")
    last = found(path)[-1].place
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="cut off or replaced"):
        content(last)
    path.unlink()
    with pytest.raises(DataError, match="the file cannot be read: No such file"):
        content(last)


def test_zip64(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        with archive.open("big.dcm", "w", force_zip64=True) as file:
            file.write(b"zip64")
        for number in range(4):
            archive.writestr(str(number), b"small")
    assert b"PK\6\6" in (tmp_path / "x.zip").read_bytes()
    assert contents(tmp_path / "x.zip") == {"big.dcm": b"zip64"} | dict.fromkeys("0123", b"small")
