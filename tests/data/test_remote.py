"""Folders on other machines: a store of objects written here, file:// URLs, and (slow) S3 by moto's server."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.registry import _registry, known_implementations
from fsspec.spec import AbstractFileSystem

from damcli.data import filesystems, inputs, listing, remote, staging
from damcli.data.archives import Place, Refused
from damcli.data.inputs import Input
from damcli.data.remote import Mirror, is_url, mirrored, shown, staged
from damcli.errors import DamcliError, DataError, MachineError, UsageError

SECRET = "Wq9/secret"


class Store(AbstractFileSystem):
    """A store of objects as S3 is one: any key goes, folders are but names; listed page by page."""

    protocol = "s3"
    req_kw: ClassVar[dict[str, str]] = {}
    objects: ClassVar[dict[str, bytes]] = {}
    # What happens to calls: by the method's name, what it raises in turn (None: nothing).
    failing: ClassVar[dict[str, list[Exception | None]]] = {}
    calls: ClassVar[list[str]] = []
    options: ClassVar[dict[str, Any]] = {}
    cut = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        Store.options = options

    def _called(self, method: str, path: str) -> None:
        Store.calls.append(f"{method} {path}")
        turns = Store.failing.get(method)
        if turns and (error := turns.pop(0)):
            raise error

    def _entry(self, name: str) -> dict[str, Any]:
        data = Store.objects[name]
        return {"name": name, "size": len(data), "type": "file", "ETag": f'"{hashlib.md5(data).hexdigest()}"'}

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, method: str, **asked: str) -> dict[str, Any]:
        self._called("call_s3", asked["Prefix"])
        keys = sorted(key for key in Store.objects if key.startswith(f"{asked['Bucket']}/{asked['Prefix']}"))
        start = int(asked.get("ContinuationToken", 0))
        found = [self._entry(key) for key in keys[start : start + 2]]
        contents = [{"Key": e["name"].partition("/")[2], "Size": e["size"], "ETag": e["ETag"]} for e in found]
        more = {"IsTruncated": True, "NextContinuationToken": str(start + 2)} if keys[start + 2 :] else {}
        return {"Contents": contents, **more}

    def find(self, path: str, **options: Any) -> dict[str, dict[str, Any]]:
        self._called("find", path)
        return {key: self._entry(key) for key in Store.objects if key.startswith(f"{path}/")}

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._called("info", path)
        if path in Store.objects:
            return self._entry(path)
        if any(key.startswith(f"{path}/") for key in Store.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        inner = {key[len(path) + 1 :].split("/")[0] for key in Store.objects if key.startswith(f"{path}/")}
        return [{"name": f"{path}/{name}", "size": 0, "type": "file"} for name in sorted(inner)]

    def cat_file(self, path: str, **options: Any) -> bytes:
        self._called("cat_file", path)
        if path not in Store.objects:
            raise FileNotFoundError(path)
        return Store.objects[path][: -Store.cut or None]

    def get_file(self, path: str, target: str, **options: Any) -> None:
        Path(target).write_bytes(self.cat_file(path))

    def pipe_file(self, path: str, data: bytes, **options: Any) -> None:
        self._called("pipe_file", path)
        Store.objects[path] = data

    def put_file(self, file: str, path: str, **options: Any) -> None:
        self._called("put_file", path)
        Store.objects[path] = Path(file).read_bytes()

    def rm_file(self, path: str) -> None:
        self._called("rm_file", path)
        del Store.objects[path]


class OtherStore(Store):
    """One whose package lists it in one piece."""

    protocol = "gs"
    call_s3 = property()  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(staging, "PAUSES", (0.0, 0.0))
    filesystems._opened.cache_clear()
    yield
    filesystems._opened.cache_clear()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[Store]]:
    """Returns `store(**objects)`: the store, as s3:// and gs://, with these objects in it."""
    for kind in (Store, OtherStore):
        monkeypatch.setitem(_registry, kind.protocol, kind)

    def make(objects: dict[str, bytes]) -> type[Store]:
        Store.objects, Store.failing, Store.calls, Store.cut = dict(objects), {}, [], 0
        return Store

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "far"
    (place / "in" / "a b").mkdir(parents=True)
    for name, data in {"x.png": b"x", "a b/ü#1 100%?.png": b"yy", "labels.csv": b"path\nx.png\n"}.items():
        (place / "in" / name).write_bytes(data)
    return place


def kept(tmp_path: Path) -> list[str]:
    """What is left in the folder for other machines' files."""
    top = tmp_path / "cache" / "damcli"
    return sorted(file.relative_to(top).as_posix() for file in top.rglob("*") if file.parent != top)


def found(mirror: Mirror) -> dict[str, Input]:
    return {one.name: one for one in inputs.given([str(mirror.root)]).find()}


def content(mirror: Mirror) -> dict[str, bytes | str]:
    """What is fetched of all of a mirror: bytes, or why not."""
    got = {name: mirror.fetched(one.place, one.stamp) for name, one in found(mirror).items()}
    return {name: one.reason if isinstance(one, Refused) else one.content or b"" for name, one in got.items()}


def said(error: BaseException) -> str:
    """All that is printed of an error, also with those that led to it."""
    led = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{error!r} {error} {vars(error)}" + (said(led) if led else "")


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("s3://bucket/scans/", "s3://bucket/scans"),
        (f"s3://AKIA:{SECRET.replace('/', '%2F')}@bucket/scans", "s3://bucket/scans"),
        ("sftp://alice:pw@host:22/scans", "sftp://host:22/scans"),
        ("sftp://alice:p@:w@host:22/scans", "sftp://host:22/scans"),
        ("sftp://alice@host/scans", "sftp://alice@host/scans"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("https://host/scans?sig=abc&se=1", "https://host/scans"),
        ("s3://bucket/what?/a:b@c", "s3://bucket/what?/a:b@c"),
    ],
)
def test_urls_are_shown_without_what_opens_doors(url: str, seen: str) -> None:
    assert is_url(url)
    assert shown(url) == seen


@pytest.mark.parametrize("path", ["scans/a.png", "/abs", "C:\\scans", "c://x", "a b://c", "", "-", "://x"])
def test_paths_are_no_urls(path: str) -> None:
    assert not is_url(path)


def test_a_folder_is_seen_as_it_is(folder: Path, tmp_path: Path) -> None:
    with mirrored(f"file://{folder}/in/") as mirror:
        assert mirror.url == f"file://{folder}/in"
        assert mirror.path == mirror.root
        assert stat.S_IMODE(mirror.root.stat().st_mode) == 0o700
        assert content(mirror) == {"labels.csv": b"path\nx.png\n", "x.png": b"x", "a b/ü#1 100%?.png": b"yy"}
        assert (mirror.root / "labels.csv").read_bytes() == b"path\nx.png\n"
        assert (mirror.root / "x.png").read_bytes() == b"\0"
        assert mirror.url_of(mirror.root / "a b" / "ü#1 100%?.png") == f"file://{folder}/in/a b/ü#1 100%?.png"
        assert mirror.url_of(mirror.root) == mirror.url
        first = {name: one.stamp for name, one in found(mirror).items()}
    assert kept(tmp_path) == []
    with mirrored(f"file://{folder}/in") as again:
        assert again.root == mirror.root
        assert {name: one.stamp for name, one in found(again).items()} == first
        assert {name: again.stamp(one.place.path) for name, one in found(again).items()} == first
    (folder / "in" / "x.png").write_bytes(b"X")  # of the same size
    os.utime(folder / "in" / "x.png", (5, 5))
    with mirrored(f"file://{folder}/in") as again:
        changed = {name for name, one in found(again).items() if one.stamp != first[name]}
        assert changed == {"x.png"}


def test_a_mirror_takes_no_room(folder: Path) -> None:
    with (folder / "in" / "large.dcm").open("wb") as file:
        file.truncate(2**33)
    with mirrored(f"file://{folder}/in") as mirror:
        status = (mirror.root / "large.dcm").stat()
        assert (status.st_size, status.st_blocks) == (listing.SIZE_LIMIT, 0)
        assert content(mirror)["large.dcm"] == "the file is larger than 2 GiB"


def test_a_table_brings_its_folder_and_a_scan_itself_alone(folder: Path) -> None:
    with mirrored(f"file://{folder}/in/labels.csv") as mirror:
        assert mirror.path == mirror.root / "labels.csv"
        assert mirror.url == f"file://{folder}/in"
        assert len(content(mirror)) == 3
        (one,) = inputs.given([str(mirror.path)]).find()
        assert mirror.fetched(one.place, one.stamp) == Place(mirror.root / "x.png", content=b"x")
    with mirrored(f"file://{folder}/in/x.png") as mirror:
        assert content(mirror) == {"x.png": b"x"}
        assert mirror.url_of(mirror.path) == f"file://{folder}/in/x.png"


ODD = {
    "b/in/../up.png": b"1",
    "b/in//etc/passwd": b"2",
    "b/in/./here.png": b"3",
    f"b/in/{'n' * 300}.png": b"4",
    f"b/in/{'m' * 300}": b"",
    "b/in/nul\0l.png": b"5",
    "b/in/both.png": b"6",
    "b/in/filled/": b"7",
    "b/in/" + "/".join(["d" * 200] * 30) + ".dcm": b"8",
}
EVEN = {
    "b/in/both.png/inner.png": b"a",
    "b/in/marked/x.png": b"b",
    "b/in/CASE.png": b"c",
    "b/in/case.png": b"d",
    "b/in/a b/ü 日本 # ? % & ' \" \\ \n.png": b"e",
    "b/in/%2e%2e/x.png": b"f",
    "b/in/s3:x::y/z.png": b"g",
    "b/in/-rf": b"",
    "b/in/~/x.png": b"h",
    "b/in/.hidden": b"i",
}
MARKERS = {"b/in/": b"", "b/in/marked": b"", "b/in/empty/": b""}


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_no_object_is_lost_whatever_its_name(store: Any, tmp_path: Path, protocol: str) -> None:
    store({**ODD, **EVEN, **MARKERS, "b/in2/x.png": b"not ours", "b/index": b""})
    with mirrored(f"{protocol}://b/in") as mirror:
        got = content(mirror)
        plain = {name: data for name, data in got.items() if isinstance(data, bytes)}
        assert plain == {name.removeprefix("b/in/"): data for name, data in EVEN.items()}
        refused = {name: reason for name, reason in got.items() if isinstance(reason, str)}
        assert len(refused) == len(ODD)
        assert set(refused.values()) == {remote.ODD}
        assert {Path(name).suffix for name in refused} == {".png", ".dcm", ""}
        assert all(len(Path(name).parts) == 1 for name in refused)
    assert kept(tmp_path) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache"]


def test_two_names_that_are_one_on_this_disk(store: Any, tmp_path: Path) -> None:
    """As on a disk that takes a.png and A.png for the same: the one that comes later is refused, and both are there."""
    entries = [{"name": "b/in/a.png", "size": size, "type": "file", "ETag": str(size)} for size in (1, 2)]
    store({})
    far = filesystems.opened("s3://b/in")
    (tmp_path / "root").mkdir()
    remote._fill(tmp_path / "root", far, iter(entries), "s3://b/in")
    names = sorted(file.name for file in (tmp_path / "root").iterdir())
    assert [re.sub("[0-9a-f]{12}", "…", name) for name in names] == ["a.png", "a~odd-….png"]


def test_tables_of_hostile_names_are_not_read(store: Any) -> None:
    store({"b/in/../labels.csv": b"evil", "b/in/x.png": b"x"})
    with mirrored("s3://b/in") as mirror:
        (table,) = mirror.root.glob("*.csv")
        assert table.read_bytes() == b"\0" * 4


def test_archives_are_refused_by_a_row(store: Any) -> None:
    store({"b/in/a.zip": b"PK\3\4" + b"0" * 50, "b/in/b.tar.gz": b"\x1f\x8b\x08", "b/in/c.tar": b"\0" * 1024})
    with mirrored("s3://b/in") as mirror:
        assert set(content(mirror).values()) == {remote.ARCHIVE}


def test_what_changed_after_it_was_listed_is_refused(store: Any) -> None:
    store({f"b/in/{name}.png": name.encode() for name in ("same", "other", "longer", "gone")})
    with mirrored("s3://b/in") as mirror:
        listed = found(mirror)
        Store.objects |= {"b/in/other.png": b"OTHER", "b/in/longer.png": b"longer still"}
        del Store.objects["b/in/gone.png"]
        got = content(mirror)
        gone = "the file cannot be read: No such file or directory"
        assert got == {
            "same.png": b"same", "other.png": remote.CHANGED, "longer.png": remote.CHANGED, "gone.png": gone,
        }  # fmt: skip
    # On a machine that does not see the mirror, the stamp tells as much.
    mirror = pickle.loads(pickle.dumps(mirror))
    away = {name: mirror.fetched(one.place, one.stamp) for name, one in listed.items()}
    assert {name: one.reason if isinstance(one, Refused) else one.content for name, one in away.items()} == got
    assert mirror.fetched(Place(Path("/elsewhere/x.png"))) == Place(Path("/elsewhere/x.png"))
    outside = mirror.fetched(Place(mirror.root / ".." / "x.png"))
    assert outside == Refused("the path leaves the folder of scans")


def test_changed_while_it_is_read(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store({"b/in/x.png": b"before"})
    with mirrored("s3://b/in") as mirror:
        read = Store.cat_file

        def exchanged(self: Store, path: str) -> bytes:
            Store.objects[path] = b"after!"
            return read(self, path)

        monkeypatch.setattr(Store, "cat_file", exchanged)
        assert content(mirror) == {"x.png": remote.CHANGED}


def test_regions_are_those_of_the_fetched_image(store: Any) -> None:
    store({"b/in/x.png": b"x"})
    with mirrored("s3://b/in") as mirror:
        place = Place(mirror.root / "x.png#xywh=1,2,3,4")
        assert mirror.fetched(place) == place._replace(content=b"x")
        assert mirror.stamp(place.path) == mirror.stamp(mirror.root / "x.png")


def test_half_of_an_object_is_none(store: Any) -> None:
    made = store({"b/in/x.png": b"whole"})
    with mirrored("s3://b/in") as mirror:
        made.cut = 2
        assert content(mirror) == {"x.png": "the file cannot be read: less of it comes than there is"}
    assert made.calls.count("cat_file b/in/x.png") == 3
    made.cut, made.objects["b/in/t.csv"] = 2, b"path\nx.png\n"
    with pytest.raises(DataError, match="cut off") as caught, mirrored("s3://b/in"):
        pass
    assert "where: s3://b/in/t.csv" in str(caught.value)


def test_failures_are_tried_again_and_then_stop_the_run(store: Any) -> None:
    made = store({"b/in/x.png": b"x"})
    with mirrored("s3://b/in") as mirror:
        made.failing["cat_file"] = [TimeoutError(), OSError(5, "")]
        assert content(mirror) == {"x.png": b"x"}
        made.failing["cat_file"] = [PermissionError(f"{SECRET} may not")]
        assert content(mirror) == {"x.png": "the file cannot be read: Permission denied"}
        made.failing["cat_file"] = [TimeoutError(SECRET)] * 3
        with pytest.raises(MachineError, match="Connection timed out") as caught:
            content(mirror)
    assert caught.value.where == "s3://b/in/x.png"
    assert SECRET not in said(caught.value)


def test_scans_are_fetched_ahead_but_in_order(store: Any) -> None:
    store({f"b/in/{number:02}.png": b"%d" % number for number in range(20)})
    with mirrored("s3://b/in") as mirror:
        given = [(one.place, one.stamp) for one in found(mirror).values()]
        given.insert(3, (Refused("why"), ""))
        got = list(mirror.fetching(iter(given)))
        assert got == [one if isinstance(one, Refused) else mirror.fetched(one) for one, _ in given]
        started = mirror.fetching(iter(given))
        assert next(started) == got[0]
        started.close()


def test_what_is_fetched_ahead_has_a_limit_of_bytes(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "async_impl", True)
    monkeypatch.setattr(remote, "AHEAD_BYTES", 100)
    store({f"b/in/{n}.png": b"p" * (400 if n == 5 else 40) for n in range(12)})
    with mirrored("s3://b/in") as mirror:
        taken: list[int] = []

        def given() -> Iterator[tuple[Place | Refused, str]]:
            for n in range(12):
                taken.append(n)
                path = mirror.root / f"{n}.png"
                yield Place(path), mirror.stamp(path)

        for number, place in enumerate(mirror.fetching(given())):
            assert isinstance(place, Place)
            assert place.path.name == f"{number}.png"
            # Two that wait, and one that is known but not yet fetched.
            assert taken[-1] - number <= 3


@pytest.mark.parametrize("method", ["info", "call_s3", "cat_file"])
@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (PermissionError(SECRET), UsageError, "access to this is denied"),
        (FileNotFoundError(SECRET), UsageError, "there is no such bucket, folder or file"),
        (TimeoutError(SECRET), MachineError, "Connection timed out"),
        (OSError(28, SECRET), MachineError, "No space left on device"),
        (RuntimeError(f"https://b/?X-Amz-Signature={SECRET}"), MachineError, "RuntimeError"),
    ],
)
def test_errors_quote_nothing_of_the_file_system(
    store: Any, tmp_path: Path, method: str, raised: Exception, kind: type[DamcliError], words: str
) -> None:
    made = store({"b/in/labels.csv": b"x"})
    made.failing[method] = [raised] * 9
    url = f"s3://AKIA:{SECRET.replace('/', '%2F')}@b/in"
    with pytest.raises(kind, match=words) as caught, mirrored(url):
        pass
    assert caught.value.where == "s3://b/in"
    assert SECRET not in said(caught.value)
    assert "AKIA" not in said(caught.value)
    assert kept(tmp_path) == []


def test_credentials_reach_the_file_system_and_nothing_else(store: Any, tmp_path: Path) -> None:
    made = store({"b/in/x.png": b"x"})
    with mirrored(f"s3://AKIA:{SECRET.replace('/', '%2F')}@b/in") as mirror:
        assert (made.options["key"], made.options["secret"]) == ("AKIA", SECRET)
        shows = [repr(mirror), str(mirror), mirror.url, mirror.url_of(mirror.root / "x.png"), *map(str, kept(tmp_path))]
        assert not [text for text in shows if "AKIA" in text or "secret" in text]
        assert content(pickle.loads(pickle.dumps(mirror))) == {"x.png": b"x"}
    with pytest.raises(UsageError, match="cannot be understood") as caught, mirrored(f"s3://AKIA:{SECRET}@b/in"):
        pass
    assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("far://b/in", MachineError, "far:// needs a package.*\n.*\n.*Install far-package"),
        ("nothing://b/in", UsageError, "no file system is called nothing"),
        ("s3://", UsageError, "names no folder"),
        ("s3://b/none", UsageError, "there is no such"),
        ("zip://a::s3://b/in", UsageError, "cannot be understood"),
        ("https://host/in?sig=abc", UsageError, "has a query.*\n  where: https://host/in\n"),
        ("file:///no/such/folder", UsageError, "there is no such"),
    ],
)
def test_urls_that_mean_nothing(
    store: Any, monkeypatch: pytest.MonkeyPatch, url: str, kind: type[DamcliError], words: str
) -> None:
    store({"b/in/x.png": b"x"})
    absent = {"class": "no_such_package.FileSystem", "err": "Install far-package to access this"}
    monkeypatch.setitem(known_implementations, "far", absent)
    with pytest.raises(kind, match=words), mirrored(url):
        pass


def test_errors_of_the_block_name_the_url(folder: Path) -> None:
    with pytest.raises(DataError) as caught, mirrored(f"file://{folder}/in") as mirror:
        raise DataError(f"{mirror.root / 'a'} is odd", where=mirror.root / "labels.csv", fix="mend it")
    text = f"file://{folder}/in/a is odd\n  where: file://{folder}/in/labels.csv\n  fix: mend it"
    assert str(caught.value) == text


def test_two_commands_see_one_folder_at_once(folder: Path, tmp_path: Path) -> None:
    with mirrored(f"file://{folder}/in") as one, mirrored(f"file://{folder}/in") as other:
        assert one.root != other.root
        assert content(one) == content(other)
        assert [input.stamp for input in found(one).values()] == [input.stamp for input in found(other).values()]
    assert kept(tmp_path) == []


def test_what_a_killed_run_left_is_made_anew(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time; from damcli.data.remote import mirrored\n"
        "with mirrored(sys.argv[1]) as mirror: print(mirror.root, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, f"file://{folder}/in"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        root = Path(process.stdout.readline().decode().strip())
        process.send_signal(signal.SIGKILL)
    assert (root / "x.png").exists()
    (folder / "in" / "x.png").unlink()
    with mirrored(f"file://{folder}/in") as mirror:
        assert mirror.root == root
        assert set(content(mirror)) == {"labels.csv", "a b/ü#1 100%?.png"}
    assert kept(tmp_path) == []


def test_links_are_followed_and_none_is_lost(folder: Path) -> None:
    (folder / "apart").mkdir()
    (folder / "apart" / "y.png").write_bytes(b"y")
    for name, target in {
        "file.png": folder / "apart" / "y.png",
        "broken.png": "nowhere",
        "more": folder / "apart",
    }.items():
        (folder / "in" / name).symlink_to(target)
    with mirrored(f"file://{folder}/in") as mirror:
        got = content(mirror)
    assert got["file.png"] == got["more/y.png"] == b"y"
    assert got["broken.png"] == "the file cannot be read: No such file or directory"
    for name in ("one", "two"):
        (folder / "in" / name).symlink_to(folder / "in")
    with pytest.raises(DamcliError), mirrored(f"file://{folder}/in"):
        pass


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of moto's server with a bucket; skips where s3fs or moto is not installed."""
    pytest.importorskip("s3fs")
    boto3, server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    with pytest.MonkeyPatch.context() as patch:
        started = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        started.start()
        host, port = started.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
        started.stop()


@pytest.mark.slow
def test_s3_itself(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["x.png", "a b/ü # ? %41.png", "../up.png", "n" * 300 + ".png", "both.png", "both.png/inner.png", "-/t.csv"]
    many = [f"many/{number:04}.png" for number in range(1100)]  # a page holds a thousand
    for name in [*names, *many]:
        s3.put_object(Bucket="bucket", Key=f"in/{name}", Body=name.encode())
    for name in ("", "empty/", "both.png/"):
        s3.put_object(Bucket="bucket", Key=f"in/{name}", Body=b"")
    with mirrored("s3://bucket/in") as mirror:
        first = {name: one.stamp for name, one in found(mirror).items()}
        assert len(first) == len(names) + len(many)
        (mirror.root / "many" / "gone.png").touch()
        got = {
            name: mirror.fetched(one.place, one.stamp) for name, one in found(mirror).items() if name not in many[9:]
        }
        refused = {name: one.reason for name, one in got.items() if isinstance(one, Refused)}
        assert refused.pop("many/gone.png") == "the file cannot be read: No such file or directory"
        assert list(refused.values()) == [remote.ODD] * 3
        read = {name: one.content for name, one in got.items() if isinstance(one, Place)}
        assert read == {name: name.encode() for name in [names[0], names[1], names[5], names[6], *many[:9]]}
        s3.put_object(Bucket="bucket", Key="in/x.png", Body=b"X.PNG")
        assert mirror.fetched(Place(mirror.root / "x.png"), first["x.png"]) == Refused(remote.CHANGED)
    with mirrored("s3://bucket/in") as mirror:
        again = {name: one.stamp for name, one in found(mirror).items()}
    assert {name for name in first if first[name] != again[name]} == {"x.png"}
    for url in ("s3://none/in", "s3://bucket/none"):
        with pytest.raises(UsageError, match="there is no such"), mirrored(url):
            pass

    for text in ("one", "two"):
        with staged("s3://bucket/out/scores.csv") as path:
            assert path.exists() == (text == "two")
            path.unlink(missing_ok=True)
            path.write_text(text)
        assert s3.get_object(Bucket="bucket", Key="out/scores.csv")["Body"].read() == text.encode()
    with staged("s3://bucket/out/ds") as path:
        path.mkdir()
        for name in ("images-00000.npy", "dataset.json"):
            (path / name).write_text(name)
    with staged("s3://bucket/out/ds") as path:
        assert (path / "dataset.json").read_text() == "dataset.json"
    with staged("s3://bucket/in") as path:
        assert sorted(file.name for file in path.iterdir())[-2:] == ["n" * 60, "x.png"]
    with staged("s3://bucket/in/empty") as path:  # as S3's console makes a folder
        assert not path.exists()
    with pytest.raises(UsageError, match="there is no such"), staged("s3://none/out/scores.csv"):
        pytest.fail("nowhere to write")
    kept_keys = [one["Key"] for one in s3.list_objects_v2(Bucket="bucket", Prefix="out")["Contents"]]
    assert kept_keys == ["out/ds/dataset.json", "out/ds/images-00000.npy", "out/scores.csv"]
    assert kept(tmp_path) == []

    filesystems._opened.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match="the file system fails") as caught, mirrored("s3://bucket/in"):
        pass
    assert SECRET not in said(caught.value)
