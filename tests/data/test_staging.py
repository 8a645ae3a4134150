"""What goes to other machines: whole or not at all, by the rules of this disk, and continued where it broke off."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry

from damcli import files
from damcli.data import filesystems, staging
from damcli.data.staging import staged
from damcli.errors import DataError, MachineError, UsageError


class Store(LocalFileSystem):
    """Folders of this disk as a store of objects, gs://, which fails when it is told to."""

    protocol = "gs"
    failing: ClassVar[dict[str, list[Exception | None]]] = {}
    put: ClassVar[list[str]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(auto_mkdir=True, **options)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix("gs://").rstrip("/")

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        turns = Store.failing.get(Path(rpath).name)
        if turns and (error := turns.pop(0)):
            raise error
        Store.put.append(Path(rpath).name)
        super().put_file(lpath, rpath, **options)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        if "probe" in Store.failing:
            raise PermissionError
        super().pipe_file(path, value, **options)

    def rm_file(self, path: str) -> None:
        super().rm_file(path)
        with suppress(OSError):  # a store has no empty folders
            Path(path).parent.rmdir()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(staging, "PAUSES", (0.0, 0.0))
    monkeypatch.setitem(_registry, "gs", Store)
    Store.failing, Store.put = {}, []
    filesystems._opened.cache_clear()
    yield
    filesystems._opened.cache_clear()


@pytest.fixture(params=["file", "gs"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a folder that is not there yet, `out` of the test's folder: as a disk's and as a store's."""
    return f"{request.param}://{tmp_path}/out/deep"


def kept(tmp_path: Path) -> list[str]:
    """What is left of results that were to go elsewhere."""
    top = tmp_path / "cache" / "damcli" / "staged"
    return sorted(file.name for file in top.rglob("*") if file.is_file())


def there(tmp_path: Path) -> dict[str, str]:
    """What has arrived."""
    top = tmp_path / "out"
    return {file.relative_to(top).as_posix(): file.read_text() for file in sorted(top.rglob("*")) if file.is_file()}


def table(path: Path, text: str) -> None:
    files.write_text(path, text)


def dataset(path: Path, name: str = "one", shards: int = 3) -> None:
    """Write what looks like a dataset, its shards first, as `writer.write` does."""
    path.mkdir(exist_ok=True)
    for number in range(shards):
        if not (path / f"images-{number:05}.npy").exists():
            files.write_text(path / f"images-{number:05}.npy", f"{name} {number}")
    for file in ("rejected.csv", "manifest.parquet", "dataset.json"):
        files.write_text(path / file, name)


def raising(function: Callable[..., Any], error: type[BaseException]) -> Callable[..., Any]:
    """Return a function that raises once it is done."""

    def done(*arguments: Any) -> None:
        function(*arguments)
        raise error

    return done


def test_a_table_arrives_with_the_one_beside_it(far: str, tmp_path: Path) -> None:
    with staged(f"{far}/scores.csv") as path:
        assert path.name == "scores.csv"
        assert not path.exists()
        assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in list(path.parents)[:3])
        table(path, "units")
        table(path.with_name("scores-scans.csv"), "scans")
        table(path.with_name(".scores.csv.journal"), "rows")
        assert there(tmp_path) == {}
    assert there(tmp_path) == {"deep/scores.csv": "units", "deep/scores-scans.csv": "scans"}
    assert kept(tmp_path) == []
    with staged(f"{far}/scores.csv") as path:
        assert path.is_file()  # so that a command that does not replace files refuses
        table(path, "other units")
    assert there(tmp_path) == {"deep/scores.csv": "other units", "deep/scores-scans.csv": "scans"}
    with staged(f"{far}/scores.csv"):
        pass  # as a dry run does
    assert there(tmp_path)["deep/scores.csv"] == "other units"
    assert kept(tmp_path) == []


def test_a_dataset_arrives_with_its_document_last(tmp_path: Path) -> None:
    with staged(f"gs://{tmp_path}/out/ds") as path:
        dataset(path)
        (path / ".lock").touch()
    assert Store.put == [*(f"images-0000{n}.npy" for n in range(3)), "manifest.parquet", "rejected.csv", "dataset.json"]
    assert there(tmp_path) == {f"ds/{name}": (tmp_path / "out" / "ds" / name).read_text() for name in Store.put}
    assert kept(tmp_path) == []


def test_a_dataset_that_is_there_comes_to_be_compared(far: str, tmp_path: Path) -> None:
    with staged(f"{far}/ds") as path:
        dataset(path)
    before = there(tmp_path)
    Store.put = []
    with staged(f"{far}/ds") as path:
        assert {file.name: file.read_text() for file in path.iterdir()} == {
            "dataset.json": "one",
            "rejected.csv": "one",
        }
    with pytest.raises(UsageError) as caught, staged(f"{far}/ds") as path:
        raise UsageError("another one", where=path)
    assert caught.value.where == f"{far}/ds"
    assert there(tmp_path) == before
    assert Store.put == []
    assert kept(tmp_path) == []


def test_a_folder_of_other_things_shows_their_names(far: str, tmp_path: Path) -> None:
    files.write_text(tmp_path / "out" / "deep" / "ds" / "letters" / "a.txt", "mine")
    files.write_text(tmp_path / "out" / "deep" / "ds" / "images-00000.npy", "of an upload that broke off")
    with staged(f"{far}/ds") as path:
        assert [file.name for file in path.iterdir()] == ["letters"]
    with staged(f"{far}") as path:
        assert [file.name for file in path.iterdir()] == ["ds"]
    assert len(there(tmp_path)) == 2
    assert kept(tmp_path) == []


def test_what_an_upload_left_half_is_completed(far: str, tmp_path: Path) -> None:
    files.write_text(tmp_path / "out" / "deep" / "ds" / "images-00000.npy", "one 0 of another run")
    with staged(f"{far}/ds") as path:
        assert not path.exists()
        dataset(path)
    assert there(tmp_path)["deep/ds/images-00000.npy"] == "one 0"
    assert len(there(tmp_path)) == 6


def test_broken_off_it_continues(far: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(f"{far}/ds") as path:
        path.mkdir()
        table(path / "images-00000.npy", "kept")
        raise KeyboardInterrupt
    assert kept(tmp_path) == ["images-00000.npy"]
    assert there(tmp_path) == {}
    with staged(f"{far}/ds") as again:
        pass  # as a dry run does
    assert (again, kept(tmp_path), there(tmp_path)) == (path, ["images-00000.npy"], {})
    with staged(f"{far}/ds") as again:
        dataset(again)
    assert there(tmp_path)["deep/ds/images-00000.npy"] == "kept"
    assert kept(tmp_path) == []


def test_killed_it_continues(far: str, tmp_path: Path) -> None:
    program = (
        "import sys, time; from damcli.data.staging import staged\n"
        "with staged(sys.argv[1]) as path:\n"
        "    path.with_name('.scores.csv.journal').write_text('rows'); print(flush=True); time.sleep(60)"
    )
    url = f"{far}/scores.csv".replace("gs:", "file:")
    with subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(UsageError, match="another damcli is writing this file"), staged(url):
            pass
        process.send_signal(signal.SIGKILL)
    with staged(url) as path:
        assert path.with_name(".scores.csv.journal").read_text() == "rows"
        table(path, "done")
    assert there(tmp_path) == {"deep/scores.csv": "done"}


def test_an_upload_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    url = f"gs://{tmp_path}/out/ds"
    Store.failing = {"images-00002.npy": [TimeoutError("secret")] * 3}
    words = "finished, but was not uploaded.*Connection timed out"
    with pytest.raises(MachineError, match=words) as caught, staged(url) as path:
        dataset(path)
    assert caught.value.where == url
    assert str(path) in str(caught.value.fix)
    assert "secret" not in f"{caught.value!r}"
    assert set(there(tmp_path)) == {"ds/images-00000.npy", "ds/images-00001.npy"}
    (tmp_path / "out" / "ds" / "images-00001.npy").write_text("cut off")
    Store.put = []
    with staged(url) as again:
        assert (again / "dataset.json").exists()
    assert Store.put == ["images-00001.npy", "images-00002.npy", "manifest.parquet", "rejected.csv", "dataset.json"]
    assert there(tmp_path)["ds/images-00001.npy"] == "one 1"
    assert kept(tmp_path) == []


def test_killed_after_an_upload_nothing_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"gs://{tmp_path}/out/ds"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), staged(url) as path:
        dataset(path)
        patch.setattr(staging, "_upload", raising(staging._upload, KeyboardInterrupt))
    assert len(there(tmp_path)) == len(Store.put) == 6
    assert "dataset.json" in kept(tmp_path)
    with staged(url) as again:
        assert (again / "dataset.json").exists()
    assert len(Store.put) == 6
    assert kept(tmp_path) == []


def test_failures_of_an_upload_are_tried_again(tmp_path: Path) -> None:
    Store.failing = {"scores.csv": [TimeoutError(), OSError(5, "")]}
    with staged(f"gs://{tmp_path}/out/scores.csv") as path:
        table(path, "scores")
    assert there(tmp_path) == {"scores.csv": "scores"}


def test_a_table_that_does_not_arrive_is_kept(tmp_path: Path) -> None:
    url = f"gs://{tmp_path}/out/scores.csv"
    Store.failing = {"scores.csv": [PermissionError()]}
    with pytest.raises(MachineError, match="copy it from") as caught, staged(url) as path:
        table(path, "hours of work")
    assert str(path.parent) in str(caught.value.fix)
    assert path.read_text() == "hours of work"
    # The next run may be of another model: what lies there is not its result.
    with staged(url) as again:
        assert again.read_text() == "hours of work"
    assert there(tmp_path) == {}
    with staged(url) as again:
        table(again, "new")
    assert there(tmp_path) == {"scores.csv": "new"}


def test_a_size_that_does_not_arrive_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "put_file", lambda self, file, path: Path(path).write_bytes(b""))
    (tmp_path / "out").mkdir()
    with pytest.raises(MachineError, match="not uploaded"), staged(f"gs://{tmp_path}/out/scores.csv") as path:
        table(path, "scores")
    assert path.read_text() == "scores"


def test_another_dataset_came_meanwhile(far: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another dataset was written there meanwhile"), staged(f"{far}/ds") as path:
        dataset(path)
        dataset_of_others = tmp_path / "out" / "deep" / "ds"
        dataset_of_others.mkdir(parents=True, exist_ok=True)
        dataset(dataset_of_others, "others")
    assert set(there(tmp_path).values()) == {"others", "others 0", "others 1", "others 2"}
    assert "dataset.json" in kept(tmp_path)


def test_the_same_dataset_came_meanwhile(far: str, tmp_path: Path) -> None:
    with staged(f"{far}/ds") as path:
        dataset(path)
        (tmp_path / "out" / "deep" / "ds").mkdir(parents=True, exist_ok=True)
        dataset(tmp_path / "out" / "deep" / "ds")
        Store.put = []
    assert Store.put == []
    assert kept(tmp_path) == []


def test_where_nothing_may_be_written_nothing_is_begun(tmp_path: Path) -> None:
    Store.failing = {"probe": []}
    with pytest.raises(UsageError, match="access to this is denied"), staged(f"gs://{tmp_path}/out/scores.csv"):
        pytest.fail("hours of work")
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "words"), [("s3://", "needs|names no"), ("file:///", "names no"), ("gs://b", "names no")]
)
def test_urls_without_a_name(url: str, words: str) -> None:
    with pytest.raises((UsageError, MachineError), match=words), staged(url):
        pytest.fail("nowhere to write")


def test_errors_of_the_block_name_the_url(far: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, staged(f"{far}/ds") as path:
        raise DataError("odd", where=path / "dataset.json", fix=f"remove {path}")
    assert str(caught.value) == f"odd\n  where: {far}/ds/dataset.json\n  fix: remove {far}/ds"
    assert kept(tmp_path) == []
