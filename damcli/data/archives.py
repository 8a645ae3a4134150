"""Where the bytes of a scan are: in a file of its own, or in an archive, which is read in place.

Nothing is ever extracted to the disk, so a name in an archive can do no harm; and no size that an archive claims is
believed: more than `FILE_LIMIT` of a scan, or `HEADER_LIMIT` of a header, is never held.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, cast

from damcli.dicom import NotAnImage
from damcli.errors import DataError

FILE_LIMIT = 2**31
# Out of a compressed tar, which the process that finds the scans unpacks itself.
STREAM_LIMIT = 2**28
# What one header of a tar may take with all its extensions.
HEADER_LIMIT = 2**20
COMPRESSED: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
LINK = "it is a link inside an archive: unpack the archive to follow it"
# Of the methods of zip files those that Python reads, but bzip2: there, 40 bytes may stand for 45 MB, and nothing in
# `zipfile` bounds what it makes of them.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
OTHERS = {6: "Implode", 9: "Deflate64", 12: "bzip2", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
_NAMES = re.compile(r".+(\.zip|\.tar|\.tgz|\.tbz2?|\.txz|\.tar\.(gz|bz2|xz))", re.IGNORECASE | re.DOTALL)
_KINDS = {
    "zip": rb"PK\x03\x04|PK\x05\x06|PK\x07\x08",
    "gzip": rb"\x1f\x8b\x08",
    "bzip2": rb"BZh[1-9]1AY&SY",
    "xz": rb"\xfd7zXZ\0",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "RAR": rb"Rar!\x1a\x07",
    "ISO": rb".{32769}CD001",
}
# A program or a document, by what lies in it: those of Java, of Office, of OpenDocument.
_INNER = {"META-INF/MANIFEST.MF", "[Content_Types].xml", "mimetype"}
# What the readers of archives raise at damaged ones, in all the places where they trust them.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, OverflowError, LookupError, RuntimeError),
)
_BLOCK = 512


class Place(NamedTuple):
    """Where a scan's bytes are: a file, or a part of an archive.

    `path` is the file (or `FILE#xywh=…`, a region of its image), or the archive; `member` the number of a file in a
    zip's directory, where names may repeat; `extent` offset and length in a tar that is not compressed; `content` the
    bytes themselves, out of a compressed tar, which can be read in one go only.
    """

    path: Path
    member: int | None = None
    extent: tuple[int, int] | None = None
    content: bytes | None = None


class Refused(NamedTuple):
    """Stands in the place of a scan of which it is known already why it cannot be decoded."""

    reason: str


class Member(NamedTuple):
    """A file in an archive: `name` as the archive has it, `stamp` what changes with it, `refusal` why it has no bytes.

    Without a name it is what of the archive cannot be read.
    """

    name: str
    place: Place
    stamp: str = ""
    refusal: str = ""


def content(place: Place) -> bytes:
    """Return the bytes of a scan, at most `FILE_LIMIT`; those out of a zip are checked against its CRC.

    Raises `NotAnImage` for what is no regular file, `DataError` with the reason for what cannot be read whole.
    """
    if place.content is not None:
        return place.content
    try:
        status = place.path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NotAnImage("not a regular file")
        if place.member is not None:
            return _unzipped(_zip(place.path, status.st_size, status.st_mtime_ns), place.member)
        offset, size = place.extent or (0, status.st_size)
        _check_size(size)
        if place.extent is None:
            return place.path.read_bytes()
        with place.path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}") from error
    if len(data) < size:
        raise DataError("the archive was cut off or replaced while it was read")
    return data


def kind(data: bytes) -> str | None:
    """Return which kind of archive a whole file is by its content, for what is no image; None for anything else.

    It may hold scans, so it is not passed over. Documents and programs that are zip files inside (of Office, of
    OpenDocument, of Java, which lie on many a CD beside the scans) are none.

    >>> kind(b"PK\\3\\4"), kind(b"Rar!\\x1a\\7\\0"), kind(b"a,b\\n1,2\\n")
    ('zip', 'RAR', None)
    """
    found = _kind(data)
    return None if found == "zip" and _is_document(io.BytesIO(data)) else found


def named(path: Path) -> bool:
    """Whether a file is called like an archive that can be read in place: .zip, .tar, .tar.gz, .tgz, …"""
    return _NAMES.fullmatch(path.name) is not None


def form(path: Path) -> str | None:
    """Return which archive that can be read in place a file is by its content; None for anything else.

    "zip", "tar", or what a tar is compressed by: a key of `COMPRESSED`.
    """
    try:
        if not path.is_file():  # a pipe would have this process wait
            return None
        with path.open("rb") as file:
            head = file.read(_BLOCK)
            found = _kind(head)
            if found == "zip" and not named(path) and _is_document(file):
                return None
        if named(path) and not head.strip(b"\0"):
            return "tar"  # one that is empty, or was never filled
        if found is None and not _is_dicom(head) and path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
            return "zip"  # the last of several parts, or one with something in front
        if found in COMPRESSED:
            with COMPRESSED[found](path) as file:
                return found if _kind(file.read(_BLOCK)) == "tar" else None
        return found if found in ("zip", "tar") else None
    except (OSError, *_DAMAGE):
        return None  # the reason is found again when it is read


def members(path: Path, form: str) -> Iterator[Member]:
    """Yield the files in an archive of this `form`, in its order; where it holds none, or damage, one refusal.

    What lies in a damaged archive before the damage is yielded. Files that cannot be read are refused one by one:
    links, encrypted ones, compressions that nobody here knows. A compressed tar is unpacked in this process, a scan
    (at most `STREAM_LIMIT` bytes) at a time.
    """
    number = -1
    try:
        for number, member in enumerate(_zipped(path) if form == "zip" else _tarred(path, form)):  # noqa: B007
            yield member
    except (OSError, MemoryError, *_DAMAGE) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or "it is cut off or damaged"
        lost = f"what follows its first {number + 1} files is" if number >= 0 else "its files are"
        yield Member("", Place(path), refusal=f"the archive cannot be read ({reason}): {lost} missing here")
        return
    if number < 0:
        yield Member("", Place(path), refusal="the archive holds no file")


def _kind(head: bytes) -> str | None:
    if _is_dicom(head):
        return None
    for name, magic in _KINDS.items():
        if re.match(magic, head, re.DOTALL):
            return name
    try:
        # No magic is common to all tars, but a checksum is.
        tarfile.TarInfo.frombuf(head[:_BLOCK], "utf-8", "surrogateescape")
        return "tar"
    except (tarfile.HeaderError, *_DAMAGE):
        return None


def _is_dicom(head: bytes) -> bool:
    # Looked at first: in front of its prefix may lie anything (PS3.10, 7.1).
    return head[128:132] == b"DICM"


def _is_document(file: IO[bytes]) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return not _INNER.isdisjoint(archive.namelist())
    except (OSError, *_DAMAGE):
        return False


def _check_size(size: int) -> None:
    if size > FILE_LIMIT:
        raise DataError(f"the file is larger than {FILE_LIMIT >> 30} GiB")


def _zipped(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for number, info in enumerate(archive.infolist()):
            name = _zip_name(info)
            if not (name.endswith("/") and not info.file_size):
                stamp = f"{info.CRC:08x} {info.file_size}"
                yield Member(name, Place(path, number), stamp, _zip_refusal(info))


def _zip_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800:
        # By the standard these are bytes of code page 437; by most who write them (macOS), UTF-8.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _zip_refusal(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "it is encrypted: unpack the archive with its password"
    if info.create_system == 3 and stat.S_ISLNK(info.external_attr >> 16):
        return LINK
    if info.compress_type not in METHODS:
        method = OTHERS.get(info.compress_type, f"method {info.compress_type}")
        return f"it is compressed by {method}, which cannot be read here: unpack the archive"
    return ""


@lru_cache(maxsize=1)
def _zip(path: Path, size: int, changed: int) -> zipfile.ZipFile:
    """Return the archive, open; `size` and `changed` (its time) are there so that another one is opened anew."""
    try:
        return zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise DataError("the archive is cut off or damaged") from error


def _unzipped(archive: zipfile.ZipFile, number: int) -> bytes:
    try:
        info = archive.infolist()[number]
        if refusal := _zip_refusal(info):
            raise DataError(refusal)
        _check_size(info.file_size)
        # What LZMA makes of a piece is bounded by its size alone.
        piece = zipfile.ZipExtFile.MIN_READ_SIZE if info.compress_type == zipfile.ZIP_LZMA else 2**20
        with archive.open(info) as file:
            data = b"".join(iter(lambda: file.read(piece), b""))
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError("it is damaged in the archive") from error
    if len(data) != info.file_size:
        raise DataError("it is damaged in the archive")
    return data


class _Headers(tarfile.TarInfo):
    """Headers of a tar, of which one that is damaged is an error: `tarfile` takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(_BLOCK):
                raise
            raise tarfile.ReadError("damaged") from error


class _Stream:
    """A tar's bytes, of which `left` may still be read: a header can claim any size for itself."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, HEADER_LIMIT
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError("a header that is too long")
        return self.file.read(size)


def _tarred(path: Path, form: str) -> Iterator[Member]:
    # Not by the block of the file system, as Python does: on a network drive it is a megabyte for every header.
    with COMPRESSED[form](path) if form in COMPRESSED else path.open("rb", buffering=4096) as file:
        end = path.stat().st_size if form == "tar" else None
        stream = _Stream(file)
        archive: Any = tarfile.TarFile(fileobj=cast(Any, stream), tarinfo=_Headers, encoding="utf-8")
        while member := archive.next():
            archive.members.clear()  # they would grow with the archive
            if member.size < 0 or archive.offset <= member.offset:
                raise tarfile.ReadError("it goes backwards")
            # Volume labels and the lists of incremental backups are GNU's.
            if not (member.isdir() or member.type in (b"V", b"D")):
                yield _tar_member(member, path, file, end)
            stream.left = HEADER_LIMIT
        while piece := file.read(2**16):
            if piece.strip(b"\0"):
                raise tarfile.ReadError("more follows its end")


def _tar_member(member: tarfile.TarInfo, path: Path, file: IO[bytes], end: int | None) -> Member:
    stamp, refusal, place = f"{member.offset_data} {member.size}", "", Place(path)
    if member.islnk() or member.issym():
        refusal = LINK
    elif not member.isreg() or member.issparse():
        refusal = "it is no ordinary file (a device, or one with holes): unpack the archive"
    elif end is not None:
        place = Place(path, extent=(member.offset_data, member.size))
        if member.offset_data + member.size > end:
            raise tarfile.ReadError("cut off")
    elif member.size > STREAM_LIMIT:
        refusal = f"it is larger than {STREAM_LIMIT >> 20} MiB inside a compressed archive: unpack the archive"
    else:
        file.seek(member.offset_data)
        place = Place(path, content=file.read(member.size))
        if len(place.content or b"") < member.size:
            raise tarfile.ReadError("cut off")
    return Member(member.name, place, stamp, refusal)
