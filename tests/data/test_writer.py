"""Writing a dataset: killed anywhere and continued, refused scans, refused folders, full disks."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.data import workers, writer
from damcli.data.images import Contract, read_scan
from damcli.data.labels import Policy
from damcli.data.sources import Source
from damcli.data.store import UNFINISHED, Dataset
from damcli.errors import DataError, MachineError, UsageError  # noqa: F401  (for the programs below)

CONTRACT = Contract(size=16, channels=1)
SCANS = 23
SHARD = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of small scans of noise, three of which are broken: the third, and the two around a shard's end."""
    rng = np.random.default_rng(0)
    place = tmp_path / "scans"
    place.mkdir()
    for number in range(SCANS):
        Image.fromarray(rng.integers(0, 256, (20, 24), np.uint8)).save(place / f"{number:02}.png")
    for number in (2, 5, 6):
        (place / f"{number:02}.png").write_bytes((place / f"{number:02}.png").read_bytes()[:200])
    return place


def source(folder: Path, **changes: object) -> Source:
    names = [f"{number:02}.png" for number in range(SCANS)]
    nothing = pl.Series([None] * SCANS, dtype=pl.String)
    scans = pl.DataFrame(
        {
            "id": names,
            "path": [str(folder / name) for name in names],
            "patient": nothing,
            "study": nothing,
            "view": nothing,
            "split": ["train"] * 15 + ["valid"] * 8,
            "label:sick": [float(number % 3 - 1) for number in range(SCANS)],
        }
    )
    made = Source(
        "table", folder, scans, ["sick"], {"sick": Policy(uncertain="ones-lsr")}, [], [("../x.png", "leaves")]
    )
    return replace(made, **changes)


def write(path: Path, what: Source, **options: object) -> Iterator[writer.Progress]:
    options = {"max_rejected": 0.5, "shard_scans": SHARD, **options}
    return writer.write(path, what, CONTRACT, lambda paths: workers.decode(paths, CONTRACT, 0), **options)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def unbroken(folder: Path, tmp_path: Path) -> dict[str, bytes]:
    path = tmp_path / "unbroken"
    assert [step.done for step in write(path, source(folder))] == list(range(1, SCANS + 2))
    return content(path)


def test_refused_scans_are_listed_and_the_others_kept(folder: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    made = Dataset.open(tmp_path / "unbroken")
    rejected = pl.read_csv(tmp_path / "unbroken" / "rejected.csv")
    assert rejected["path"].to_list() == ["../x.png", "02.png", "05.png", "06.png"]
    assert rejected["reason"].null_count() == 0
    assert made.info.rejected == 4
    assert len(made.manifest) == SCANS - 3
    assert [shard.scans for shard in made.info.shards] == [5, 5, 5, 5]
    rows = np.arange(len(made.manifest))
    for row, image in zip(rows, made.read(rows), strict=True):
        np.testing.assert_array_equal(image, read_scan(Path(made.manifest["path"][int(row)]), CONTRACT))


@pytest.mark.parametrize("stop", range(0, SCANS + 1, 2))
def test_stopped_anywhere_it_continues_to_the_same_bytes(
    folder: Path, unbroken: dict[str, bytes], tmp_path: Path, stop: int
) -> None:
    path = tmp_path / "made"
    steps = write(path, source(folder))
    for _ in range(stop + 1):
        next(steps)
    steps.close()
    finished = stop >= 8
    assert path.exists() == finished
    steps = write(path, source(folder))
    start = next(steps)
    assert (start.done > 1) == finished
    assert len(list(steps)) == start.total - start.done
    assert content(path) == unbroken


def test_killed_anywhere_it_continues_to_the_same_bytes(
    folder: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    """SIGKILL, which nothing can catch: at the first scan, between and within shards, and at the last."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_writer as t\n"
        "for step in t.write(Path(sys.argv[3]), t.source(Path(sys.argv[2]))):\n"
        "    print(step.done, flush=True); sys.stdin.readline()\n"
    )
    path = tmp_path / "made"
    for stop in (1, 8, 6):
        arguments = [sys.executable, "-c", program, str(Path(__file__).parent), str(folder), str(path)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            for _ in range(stop):
                process.stdout.readline()
                process.stdin.write("\n")
                process.stdin.flush()
            process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        with pytest.raises(DataError, match="not finished"):
            Dataset.open(path)
    start, *_ = write(path, source(folder))
    assert start.done > 1
    assert content(path) == unbroken


def interrupted(path: Path, what: Source) -> None:
    """Leave an unfinished dataset with two shards."""
    steps = write(path, what)
    for _ in range(17):
        next(steps)
    steps.close()
    assert sorted(content(path)) == [UNFINISHED, "images-00000.npy", "images-00001.npy"]


def test_what_has_changed_since_is_not_kept(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "made"
    interrupted(path, source(folder))
    Image.new("L", (30, 30), 77).save(folder / "02.png")
    start, *_ = write(path, source(folder))
    assert start.done == 1
    assert Dataset.open(path).info.rejected == 3
    assert (Dataset.open(path).read(np.array([2])) == 77).all()


def test_a_damaged_shard_is_made_again(folder: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "made"
    interrupted(path, source(folder))
    (path / "images-00001.npy").write_bytes(b"x")
    start, *_ = write(path, source(folder))
    assert 1 < start.done < 12
    assert content(path) == unbroken


@pytest.mark.parametrize("damage", ["other settings", "journal cut short", "journal of no kind"])
def test_it_starts_over_where_nothing_can_be_kept(
    folder: Path, unbroken: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "made"
    other = source(folder, policies={"sick": Policy(uncertain="zeros")})
    interrupted(path, other if damage == "other settings" else source(folder))
    if damage == "journal cut short":
        (path / UNFINISHED).write_text((path / UNFINISHED).read_text()[:-30])
    if damage == "journal of no kind":
        (path / UNFINISHED).write_text("[1]")
    start, *_ = write(path, source(folder))
    assert start.done == 1
    assert content(path) == unbroken


def test_a_finished_dataset_is_left_alone(folder: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "unbroken"
    steps = list(write(path, source(folder)))
    assert steps == [writer.Progress(SCANS + 1, SCANS + 1, 4)]
    for other in (
        {"seed": 1},
        {"shard_scans": 6},
    ):
        with pytest.raises(UsageError, match="another dataset"):
            list(write(path, source(folder), **other))
    with pytest.raises(UsageError, match="another dataset"):
        list(write(path, source(folder, policies={"sick": Policy()})))
    assert content(path) == unbroken


def test_the_fingerprint_is_of_what_is_in_it_not_of_where_it_lay(folder: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, what: Source, **options: object) -> str:
        list(write(tmp_path / name, what, **options))
        return Dataset.open(tmp_path / name).info.fingerprint

    first = fingerprint("one", source(folder))
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint("two", source(moved)) == first
    others = {
        fingerprint("three", source(moved), seed=1),
        fingerprint("four", source(moved, policies={"sick": Policy()})),
    }
    Image.new("L", (20, 24)).save(moved / "09.png")
    others.add(fingerprint("five", source(moved)))
    assert len(others) == 3
    assert first not in others


def test_a_folder_with_anything_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (folder / ".of another program.tmp").touch()
    before = content(folder)
    with pytest.raises(UsageError, match="not empty"):
        list(write(folder, source(folder)))
    assert content(folder) == before
    with pytest.raises(UsageError, match="a file"):
        list(write(folder / "00.png", source(folder)))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "..unfinished.123.tmp.json").touch()  # all that is left where the first write was killed
    assert len(list(write(empty, source(folder)))) == SCANS + 1
    assert not (empty / "..unfinished.123.tmp.json").exists()


def test_a_second_writer_is_refused(folder: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "made"
    first = write(path, source(folder))
    next(first)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_writer as t\n"
        "try: list(t.write(Path(sys.argv[3]), t.source(Path(sys.argv[2]))))\n"
        "except t.UsageError as error: sys.exit(str(error))\n"
    )
    second = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(folder), str(path)],
        capture_output=True,
        text=True,
    )
    assert "another damcli is writing" in second.stderr
    list(first)
    assert content(path) == unbroken


def test_too_many_refused_scans_stop_it(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "made"
    with pytest.raises(DataError, match=r"(?s)2 of the first 4 of 24 .*--max-rejected") as caught:
        list(write(path, source(folder), max_rejected=0.05))
    assert "leaves (1)" in str(caught.value)
    assert not path.exists()


def test_one_refused_scan_never_stops_it_unless_none_may_be(folder: Path, tmp_path: Path) -> None:
    for number in (5, 6):
        Image.new("L", (20, 24)).save(folder / f"{number:02}.png")
    what = source(folder, refused=[])
    list(write(tmp_path / "made", what, max_rejected=0.001))
    assert Dataset.open(tmp_path / "made").info.rejected == 1
    with pytest.raises(DataError, match="1 of the first 3"):
        list(write(tmp_path / "other", what, max_rejected=0))


def test_nothing_is_left_of_a_dataset_without_scans(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="24 of 24 .*cannot be read"):
        list(write(tmp_path / "made", source(folder), max_rejected=1.0))
    assert not (tmp_path / "made").exists()


def test_a_full_disk_is_said_and_leaves_what_is_finished(
    folder: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the disk: the operating system refuses the write in the same way."""
    path = tmp_path / "made"
    program = (
        "import sys, resource; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_writer as t\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), -1))\n"
        "try: list(t.write(Path(sys.argv[3]), t.source(Path(sys.argv[2]))))\n"
        "except t.MachineError as error: print(error); sys.exit(error.exit_code)\n"
    )
    shards = [f"images-0000{number}.npy" for number in range(4)]
    for limit, left in ((1000, []), (2500, [UNFINISHED, *shards, "rejected.csv"])):
        run = subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(folder), str(path), str(limit)],
            capture_output=True,
            text=True,
        )
        assert (run.returncode, "no space is left" in run.stdout) == (5, True), run.stderr
        assert (sorted(content(path)) if path.exists() else []) == left
    list(write(path, source(folder)))
    assert content(path) == unbroken


def test_scans_of_a_mirror_are_called_by_their_urls(folder: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    """Where the mirror lies does not count: stopped there, it continues from another one, to the same dataset."""
    other = tmp_path / "elsewhere" / "mirror"
    shutil.copytree(folder, other, copy_function=shutil.copy2)
    steps = write(tmp_path / "made", source(folder, url="s3://bucket/in"))
    for _ in range(10):
        next(steps)
    steps.close()
    steps = write(tmp_path / "made", source(other, url="s3://bucket/in"))
    assert next(steps).done == 9
    list(steps)
    made, plain = Dataset.open(tmp_path / "made"), Dataset.open(tmp_path / "unbroken")
    assert made.manifest["path"].to_list() == [f"s3://bucket/in/{name}" for name in made.manifest["id"]]
    assert made.info.fingerprint == plain.info.fingerprint
    assert str(tmp_path).encode() not in b"".join(content(tmp_path / "made").values())
    (again,) = write(tmp_path / "made", source(folder, url="s3://bucket/in"))
    assert again.done == again.total
    with pytest.raises(UsageError, match="another dataset"):
        list(write(tmp_path / "made", source(folder, url="s3://bucket/other")))


def test_copies_in_two_splits_are_told_without_their_files(folder: Path, tmp_path: Path) -> None:
    """The files of a mirror are empty, so that all of one size would pass for the same."""
    shutil.copy(folder / "00.png", folder / "20.png")
    url, copied = "file:///far", tmp_path / "made"
    list(write(copied, source(folder, url=url), allow_leaks=True))
    (text,) = (concern.text for concern in Dataset.open(copied).info.audit if "two splits" in concern.text)
    assert "the same file" not in text
