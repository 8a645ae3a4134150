"""What the user gave is found once, in a stated order, by unique names, and nothing of it is passed over."""

import io
import os
import random
import sys
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

from damcli.data import inputs
from damcli.data.archives import content
from damcli.data.inputs import Input
from damcli.errors import DataError, UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of scans `scans`, below the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/10.jpg", "a/x.png", "=z.png", "b/deep/é.tif", "notes.txt", "list.csv"):
        put(f"scans/{name}")
    return tmp_path


ORDER = ["=z.png", "list.csv", "notes.txt", "a/x.png", "b/10.jpg", "b/2.png", "b/deep/é.tif"]


def put(name: str | Path, data: bytes = b"scan") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def zipped(name: str, *members: str) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(name, "w") as archive:
        for member in members:
            archive.writestr(zipfile.ZipInfo(member), member)
    return Path(name)


def tarred(name: str, *members: str, mode: str = "w") -> Path:
    with tarfile.open(name, mode) as archive:
        for member in members:
            info = tarfile.TarInfo(member)
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member.encode()))
    return Path(name)


def find(*paths: str, own: str | None = None, stdin: bytes = b"") -> list[Input]:
    """What is found, twice alike and as many as is said before."""
    given = inputs.given(paths, io.BytesIO(stdin))
    target = [Path(own)] if own else []
    found = list(given.find(*target))
    assert list(given.find(*target)) == found
    assert given.total(*target) in (len(found), None)
    assert len({one.name for one in found}) == len(found)
    return found


def names(*paths: str, own: str | None = None, stdin: bytes = b"") -> list[str]:
    return [one.name for one in find(*paths, own=own, stdin=stdin)]


def test_folders_in_order_and_what_they_are_called(here):
    assert names("scans") == names("scans/") == names(f"{here}/scans") == ORDER
    assert names(".") == [f"scans/{name}" for name in ORDER]
    assert names("scans/b", "scans/a") == ["scans/b/10.jpg", "scans/b/2.png", "scans/b/deep/é.tif", "scans/a/x.png"]
    assert names("scans/b/2.png") == ["2.png"]
    assert names("scans/notes.txt", "scans/a/x.png") == ["scans/notes.txt", "scans/a/x.png"]
    assert names(f"{here}/scans/a", "scans/b/2.png") == [f"{here}/scans/a/x.png", "scans/b/2.png"]
    assert [one.place.path.read_bytes() for one in find("scans")] == [b"scan"] * 7


def test_links_to_folders_are_followed_but_not_in_circles(here):
    put("other/y.png")
    Path("scans/link").symlink_to(here / "other")
    Path("scans/a/circle").symlink_to(here / "scans")
    Path("other/back").symlink_to(here / "scans/link")
    Path("scans/broken").symlink_to(here / "gone")
    Path("scans/self").symlink_to("self")
    found = {one.name: one for one in find("scans")}
    assert list(found) == ["=z.png", "broken", *ORDER[1:3], "self", *ORDER[3:], "link/y.png"]
    assert found["broken"].stamp == found["self"].stamp == ""


def test_the_order_is_that_of_a_sorted_walk(here):
    rng = random.Random(5)
    for _ in range(300):
        put("tree/" + "/".join(rng.choice(["a", "b", "B", "é", "a b", "-"]) for _ in range(rng.randint(1, 6))) + ".x")
    expected = []
    for folder, folders, files in os.walk("tree"):
        folders.sort()
        expected += [Path(folder, name).relative_to("tree").as_posix() for name in sorted(files)]
    assert names("tree") == expected


def test_folders_of_any_depth(here):
    put("deep/" + "d/" * 400 + "x.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        assert names("deep") == ["d/" * 400 + "x.png"]
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_that_cannot_be_read_is_an_error(here, monkeypatch):
    def locked(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UsageError, match="this folder cannot be read: Permission denied"):
        find("scans")


def test_globs_that_no_shell_expanded(here):
    assert names("scans/*/*.png") == ["scans/a/x.png", "scans/b/2.png"]
    assert names("scans/b/2.p?g") == ["2.png"]
    assert names("scans/**/*.png") == ["scans/=z.png", "scans/a/x.png", "scans/b/2.png"]
    assert names(f"{here}/scans/[ab]") == [f"{here}/scans/{name}" for name in ORDER[3:]]
    assert names("scans/b/**") == names("scans/b")
    put("scans/list.csv", b"path\nlisted.png\n")
    assert names("scans/*") == [
        f"scans/{name}" for name in ["=z.png", "a/x.png", *ORDER[4:], "listed.png", "notes.txt"]
    ], "as a shell would have given them"
    put("odd/[1].png")
    put("odd/1.png")
    assert names("odd/[1].png") == ["[1].png"], "what is there by this very name goes first"
    with pytest.raises(UsageError, match=r"no file or folder is called like this\n.*\*\.dcm"):
        find("scans/*.dcm")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nowhere"], "no such file or folder"),
        ([""], "no such file or folder"),
        (["scans", "scans/a"], "lies in a folder that is given too"),
        (["scans/a/x.png", "scans"], "lies in a folder that is given too"),
        (["scans", "./scans/"], "given twice"),
        (["scans/a/x.png", "scans/b/../a/x.png"], "given twice"),
        (["scans/a/*.png", "scans/a/x.png"], "given twice"),
        (["t.csv", "scans/a/x.png"], "given twice"),
        (["t.csv", "scans/a"], "lies in a folder that is given too"),
        (["t.csv", "t.csv"], "given twice"),
        (["-", "scans/a/x.png"], "given twice"),
        (["-", "-"], "given twice"),
    ],
)
def test_what_is_not_there_and_what_would_be_scored_twice(here, paths, message):
    put("t.csv", b"path\nscans/a/x.png\n")
    with pytest.raises(UsageError, match=message):
        find(*paths, stdin=b"scans/a/x.png\n")


def test_links_of_two_names_are_two_scans(here):
    Path("scans/a/again.png").symlink_to("x.png")
    assert names("scans/a/x.png", "scans/a/again.png") == ["scans/a/x.png", "scans/a/again.png"]


def test_a_table_lists_scans(here):
    put("lists/t.csv", b"Path,age\n../scans/b/2.png,1\n./gone.png,2\n'=z.png,3\n../scans/a,4\n/abs.png,5\n")
    put("lists/=z.png")
    found = find("lists/t.csv")
    assert [one.name for one in found] == ["../scans/b/2.png", "./gone.png", "=z.png", "../scans/a", "/abs.png"]
    assert found[0].place.path.samefile("scans/b/2.png")
    assert [bool(one.stamp) for one in found] == [True, False, True, True, False]
    assert ["a folder" in one.refusal for one in found] == [False, False, False, True, False]
    with pytest.raises(DataError, match="cannot be read: No such file"):
        content(found[1].place)
    assert names("lists/t.csv", "scans/notes.txt")[1:3] == ["lists/gone.png", "lists/=z.png"]


def test_tables_of_excel_and_of_windows(here):
    for encoding, text in {
        "utf-8-sig": "path;x\r\nscans\\b\\2.png;1\r\n",
        "utf-16": "x\tPATH\r\n1\tscans\\b\\2.png\r\n",
        "latin-1": '"path"\r\n"scans\\b\\2.png"\r\n',
    }.items():
        put("T.CSV", text.encode(encoding))
        (found,) = find("T.CSV")
        assert found.name == "scans\\b\\2.png"
        assert found.place.path.samefile("scans/b/2.png")
    put("scans\\b\\2.png", b"a file of this very name")
    assert content(find("T.CSV")[0].place) == b"a file of this very name"


def test_other_tables(here):
    put("t.tsv", b"path\tage\nscans/a/x.png\t1\n")
    pl.DataFrame({"path": ["scans/a/x.png", "'=z.png"]}).write_parquet("t.parquet")
    assert names("t.tsv") == ["scans/a/x.png"]
    assert names("t.parquet") == ["scans/a/x.png", "'=z.png"], "only CSV files have to escape names"
    assert names("scans")[1] == "list.csv", "in a folder, a table is a file as any other"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"file,age\na.png,1\n", UsageError, "no column `path`"),
        (b"path,age\na.png,1\n,2\n", UsageError, "a row has no path\n.*row 2 below the header"),
        (b"path,age\na.png,1\n./a.png,2\n", UsageError, "given twice"),
        (b"path,age\na/b.png,1\na\\b.png,2\n", UsageError, "given twice"),
        (b"path,age\na.png,1,2\n", DataError, "line 2"),
        (b"path\n", DataError, "this table is empty"),
    ],
)
def test_tables_that_are_no_lists(here, data, error, message):
    put("t.csv", data)
    with pytest.raises(error, match=message):
        find("t.csv")


def test_regions_of_one_film_are_scans_of_their_own(here):
    put("t.csv", b'path\nscans/a/x.png\n"scans/a/x.png#xywh=0,0,5,5"\n"scans/a/x.png#xywh=5,0,5,5"\n')
    assert [bool(one.stamp) for one in find("t.csv")] == [True] * 3
    assert names("scans/a/x.png#xywh=0,0,5,5") == ["x.png#xywh=0,0,5,5"]


def test_stdin_names_scans(here):
    odd = os.fsdecode(b"M\xfcller\n.dcm")
    put(odd)
    assert names("-", stdin=b"scans/a/x.png\n\ngone.png\r\n y ") == ["scans/a/x.png", "gone.png", " y "]
    found = find("-", stdin=b"scans/a/x.png\0" + os.fsencode(odd) + b"\0scans/b/2.png")
    assert [one.name for one in found] == ["scans/a/x.png", odd, "scans/b/2.png"]
    assert all(one.stamp for one in found)
    assert names("scans/b/2.png", "-", stdin=b"\xef\xbb\xbfscans/a/x.png") == ["scans/b/2.png", "scans/a/x.png"]
    assert "folder" in find("-", stdin=b"scans")[0].refusal
    for nothing in (b"", b"\n\r\n", b"\0"):
        with pytest.raises(UsageError, match="stdin names no path"):
            find("-", stdin=nothing)


@pytest.mark.parametrize("pack", [zipped, tarred, lambda *given: tarred(*given, mode="w:gz")])
def test_archives_where_their_files_lie(here, pack):
    suffix = {zipped: "zip", tarred: "tar"}.get(pack, "tar.gz")
    archive = pack(f"scans/b/5.{suffix}", "z.dcm", "a/1.dcm", "=1")
    inner = ["z.dcm", "a/1.dcm", "=1"]
    assert names("scans") == [*ORDER[:6], *(f"b/5.{suffix}/{name}" for name in inner), ORDER[6]]
    assert names(str(archive)) == inner
    assert names(str(archive), "scans/notes.txt") == [*(f"{archive}/{name}" for name in inner), "scans/notes.txt"]
    found = [one for one in find("scans") if suffix in one.name]
    assert [content(one.place) for one in found] == [name.encode() for name in inner]
    assert len({one.stamp for one in found}) == 3
    archive.rename("anything")
    assert names("anything") == inner, "given itself, its content says what it is"
    archive.parent.joinpath("x").write_bytes(Path("anything").read_bytes())
    assert "b/x" in names("scans"), "in a folder, its name too"


def test_a_document_is_a_file_and_a_zip_of_its_name_is_none(here):
    zipped("report.docx", "word/document.xml", "[Content_Types].xml")
    assert names("report.docx") == ["report.docx"]
    Path("report.docx").rename("report.zip")
    assert names("report.zip") == ["word/document.xml", "[Content_Types].xml"]


def test_names_in_archives_are_relative_and_unique(here):
    odd = ["/etc/passwd", "../../up.dcm", "C:\\scans\\1.dcm", "./a//b.dcm", "a/b.dcm", "..", "/", "a/b.dcm (2)"]
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped("x.zip", *odd, "a/b.dcm")
    assert names("x.zip") == [
        *(
            "etc/passwd",
            "up.dcm",
            "scans/1.dcm",
            "a/b.dcm",
            "a/b.dcm (2)",
            "_",
            "_ (2)",
            "a/b.dcm (2) (2)",
            "a/b.dcm (3)",
        )
    ]


def test_the_rest_of_a_damaged_archive_is_one_row_more(here):
    tarred("scans/x.tar", "1.dcm", "2.dcm", "x.tar")
    data = Path("scans/x.tar").read_bytes()
    Path("scans/x.tar").write_bytes(data[:3100])
    found = [one for one in find("scans") if "x.tar" in one.name]
    assert [one.name for one in found] == ["x.tar/1.dcm", "x.tar/2.dcm", "x.tar/x.tar", "x.tar"]
    assert [bool(one.refusal) for one in found] == [False, False, False, True]
    assert names("scans/x.tar") == ["1.dcm", "2.dcm", "x.tar", "x.tar (2)"]
    put("scans/y.zip", b"PK\3\4 cut off")
    assert [one.name for one in find("scans") if one.refusal] == ["x.tar", "y.zip"]


def test_how_many_there_are_is_known_before_but_for_compressed_tars(here):
    zipped("scans/x.zip", "1", "2")
    tarred("scans/x.tar", "1", "2", "3")
    assert inputs.given(["scans"]).total() == 7 + 2 + 3
    tarred("scans/x.tgz", "1", mode="w:gz")
    assert inputs.given(["scans"]).total() is None
    assert len(find("scans")) == 7 + 2 + 3 + 1


def test_what_is_written_is_no_scan_whoever_left_it(here):
    for name in (
        "s.csv",
        ".s.csv.journal",
        ".s.csv.lock",
        ".s.4711.tmp.csv",
        ".s.csv.png",
        "s.csv.png",
        ".s.x.tmp.csv",
    ):
        put(f"scans/{name}")
    put("scans/a/s.csv")
    others = [".s.csv.png", ".s.x.tmp.csv", "s.csv.png", "a/s.csv"]
    assert [name for name in names("scans", own="scans/s.csv") if name not in ORDER] == others
    Path("link").symlink_to("scans")
    assert [name for name in names("scans", own="link/s.csv") if name not in ORDER] == others
    assert names("scans/=z.png", "scans/.s.csv.lock", own="scans/s.csv") == ["scans/=z.png"]


def test_what_is_scored_is_not_written_over(here):
    put("t.csv", b"path\na.png\n")
    zipped("x.csv", "a")
    for path in ("t.csv", "./x.csv"):
        if path == "./x.csv":
            Path("x.csv").rename("x")
            path = "x"
        with pytest.raises(UsageError, match="would take the place of what was given"):
            list(inputs.given([path]).find(Path(path)))


def test_stamps_change_with_the_file(here):
    before = find("scans/notes.txt", "scans/a/x.png")
    put("scans/notes.txt", b"longer than before")
    os.utime("scans/a/x.png", ns=(1, 1))
    after = find("scans/notes.txt", "scans/a/x.png")
    assert all(one.stamp != other.stamp for one, other in zip(before, after, strict=True))
    zipped("x.zip", "1", "2")
    before = find("x.zip")
    os.utime("x.zip", ns=(1, 1))
    assert all(one.stamp != other.stamp for one, other in zip(before, find("x.zip"), strict=True))
