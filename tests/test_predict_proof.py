"""The proof of `damcli predict`: every real file has its row, whatever is wrong with it, and a kill costs nothing.

One model for all: an ensemble of three backbones and two sizes, beside PyTorch and each member alone.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import torch

from damcli.bundle import build
from damcli.data.images import Contract, read_scan
from damcli.deepauc.network import Classifier

FINDINGS = ("Edema", "Fracture", "Pneumonia")
# The findings of each member, its backbone and its size.
MEMBERS = (
    ("test_resnet", 96, ("Edema", "Fracture")),
    ("test_convnext", 48, ("Fracture", "Pneumonia")),
    ("test_efficientnet", 96, ("Edema", "Fracture", "Pneumonia")),
)
PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"


def member(number: int) -> build.Member:
    backbone, size, findings = MEMBERS[number]
    torch.manual_seed(number)
    network = Classifier(backbone, len(findings)).eval()
    # Scores of an untrained last layer are all but the same.
    network.backbone.get_classifier().weight.data *= 20
    origin = dict.fromkeys(("run", "recipe", "loss", "dataset", "weights_sha256"), backbone) | {"seed": number}
    return build.Member(network, findings, Contract(size=size, channels=1), origin)


@pytest.fixture(scope="session")
def members() -> list[build.Member]:
    return [member(number) for number in range(len(MEMBERS))]


@pytest.fixture(scope="session")
def model(members: list[build.Member], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proof") / "ensemble.onnx"
    build.export(members, path, np.random.default_rng(0).integers(0, 256, (4, 96, 96), np.uint8))
    return path


def files_of(root: Path) -> Iterator[Path]:
    """All files in the order that is stated: folder by folder, sorted, a folder's own files first."""
    inside = sorted(root.iterdir())
    yield from (entry for entry in inside if not entry.is_dir())
    for folder in inside:
        if folder.is_dir():
            yield from files_of(folder)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def rows_of(path: Path) -> list[dict[str, str]]:
    return table(path.read_text(encoding="utf-8"))


def check(rows: list[dict[str, str]], expected: list[str]) -> dict[str, str]:
    """Each input has its row, in order, with scores or a reason, never both; return the statuses."""
    assert [row["path"].removeprefix("'") for row in rows] == expected
    for row in rows:
        scores = [row[finding] for finding in FINDINGS]
        if row["status"] == "ok":
            assert row["error"] == ""
            assert all(0 <= float(score) <= 1 for score in scores)
        else:
            assert row["status"] in ("failed", "skipped")
            assert row["error"]
            assert scores == [""] * len(FINDINGS)
    return {row["path"]: row["status"] for row in rows}


def hostile(folder: Path) -> None:
    """Write cut off, flipped and invented files: DICOM that is real where there is some, pictures, and names."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 50), np.uint8)
    whole = {form: cv2.imencode(f".{form}", image)[1].tobytes() for form in ("png", "jpg", "tif")}
    whole |= {name: (PYDICOM / name).read_bytes() for name in ("CT_small.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm")}
    for name, data in whole.items():
        for number in range(6):
            cut = data[: int(rng.integers(1, len(data)))]
            flipped = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                flipped[place] ^= 1 << int(rng.integers(8))
            (folder / f"cut{number}_{name}").write_bytes(cut)
            (folder / f"flipped{number}_{name}").write_bytes(flipped)
    # A header that promises what would fill the memory, and files that say to be what they are not.
    bomb = pydicom.dcmread(PYDICOM / "CT_small.dcm")
    bomb.Rows = bomb.Columns = 65535
    bomb.save_as(folder / "bomb.dcm")
    (folder / "zeros.dcm").write_bytes(bytes(128) + b"DICM" + bytes(4000))
    (folder / "text.png").write_text("not a picture\n")
    (folder / "empty").touch()
    (folder / "=cmd|' x.png").write_bytes(whole["png"])
    (folder / 'two\nlines, "quoted".png').write_bytes(whole["png"])
    (folder / os.fsdecode(b"not\xffutf8.png")).write_bytes(whole["png"])
    (folder / "gone.dcm").symlink_to(folder / "nowhere")


def test_all_real_and_all_hostile_files_have_a_row_each_in_one_call(run_here, model, test_data, tmp_path) -> None:
    hostile(tmp_path / "hostile")
    given = [test_data / "dicom", PYDICOM, tmp_path / "hostile"]
    code, _, err = run_here("predict", *given, "--model", model, "-o", tmp_path / "s.csv", "--workers", 2)
    assert code == 4, err
    assert "Traceback" not in err
    expected = [str(file) for root in given for file in files_of(root)]
    rows = rows_of(tmp_path / "s.csv")
    assert len(rows) > 14 + 170 + 72
    status = check(rows, [name.encode("utf-8", "backslashreplace").decode() for name in expected])
    assert f"{len(rows)} scans: " in err
    others = {"SOURCE.txt", "manifest.csv", "hip_RG2_JPLY_fixed.dcm", "leg_RG3_JPLY"}
    readable = [file for file in files_of(test_data / "dicom") if file.name not in others]
    assert {status[str(file)] for file in readable} == {"ok"}
    known = {"CT_small.dcm": "ok", "JPEG2000.dcm": "ok", "MR_truncated.dcm": "failed", "rtplan.dcm": "skipped"}
    assert {name: status[str(PYDICOM / name)] for name in known} == known
    odd = {"bomb.dcm": "failed", "zeros.dcm": "failed", "empty": "failed", "gone.dcm": "failed", "text.png": "skipped"}
    assert {name: status[str(tmp_path / "hostile" / name)] for name in odd} == odd
    assert status[str(tmp_path / "hostile" / 'two\nlines, "quoted".png')] == "ok"


def test_an_ensemble_of_three_backbones_and_two_sizes_is_the_mean_of_its_members(
    run_here, model, members, test_data, tmp_path
) -> None:
    files = [test_data / "dicom" / name for name in ("chest_NIH_implicitVR.dcm", "leg_RG3_RLE", "mammo_MG1_J2KI")]
    code, _, err = run_here("predict", *files, "--model", model, "-o", tmp_path / "s.csv", "--workers", 0)
    assert code == 0, err
    rows = rows_of(tmp_path / "s.csv")
    pixels = np.stack([read_scan(file, Contract(size=96, channels=1)) for file in files])
    expected = {finding: [] for finding in FINDINGS}
    for one in members:
        size = one.contract.size
        small = [cv2.resize(np.float32(image) / 255, (size, size), interpolation=cv2.INTER_AREA) for image in pixels]
        with torch.no_grad():
            scores = one.network(torch.from_numpy(np.stack(small))[:, None]).sigmoid().numpy()
        for finding, column in zip(one.findings, scores.T, strict=True):
            expected[finding].append(column)
    for finding, parts in expected.items():
        got = [float(row[finding]) for row in rows]
        np.testing.assert_allclose(got, np.mean(parts, axis=0), atol=2e-5)
        assert np.ptp(got) > 1e-3, "scans that are told apart"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of DICOM files and pictures, a damaged one and a note among them."""
    folder = tmp_path_factory.mktemp("tree") / "scans"
    rng = np.random.default_rng(2)
    for number in range(21):
        file = folder / f"p{number // 6}" / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cv2.imencode(".png", rng.integers(0, 256, (60, 50), np.uint8))[1].tobytes())
    for name in ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm"):
        (folder / "p1" / name).write_bytes((PYDICOM / name).read_bytes())
    (folder / "p2" / "cut.png").write_bytes((folder / "p2" / "12.png").read_bytes()[:900])
    (folder / "notes.txt").write_text("of a study\n")
    return folder


@pytest.fixture(scope="module")
def unbroken(tree: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of the tree, by a process that was left alone."""
    out = tmp_path_factory.mktemp("unbroken") / "s.csv"
    assert start(tree, model, out).wait(timeout=120) == 4
    return out


def start(scans: Path, model: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "damcli", "predict", scans, "--model", model, "-o", out, "--batch", "2", "-q"]
    return subprocess.Popen([*map(str, command), *options], stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_gives_the_bytes_of_its_folder(run_here, kind, tree, model, unbroken, tmp_path) -> None:
    archive = tmp_path / f"scans.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for scan in files_of(tree):
                file.write(scan, scan.relative_to(tree))
    else:
        with tarfile.open(archive, f"w:{kind.partition('.')[2]}") as file:
            for scan in files_of(tree):
                file.add(scan, scan.relative_to(tree))
    out = tmp_path / "s.csv"
    code, _, err = run_here("predict", archive, "--model", model, "-o", out, "--batch", 2, "--workers", 2)
    assert code == 4, err
    assert out.read_bytes() == unbroken.read_bytes()


def size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@pytest.mark.parametrize("seed", [0, *(pytest.param(more, marks=pytest.mark.slow) for more in range(1, 12))])
def test_killed_again_and_again_it_ends_with_the_bytes_of_a_run_that_was_not(
    seed, tree, model, unbroken, tmp_path
) -> None:
    """Killed as soon as more than a drawn number of bytes is in the journal, then at a drawn time, to the end."""
    rng = np.random.default_rng(seed)
    out = tmp_path / "s.csv"
    out.write_text("of last week")
    journal = tmp_path / ".s.csv.journal"
    for grown in rng.integers(1, 1200, 2):
        before = size_of(journal)
        running = start(tree, model, out)
        while running.poll() is None and size_of(journal) < before + grown:
            time.sleep(0.001)
        running.send_signal(signal.SIGKILL)
        running.wait(timeout=60)
        if running.returncode == 4:
            break
        assert out.read_text() == "of last week", "a table is written whole or not at all"
    running = start(tree, model, out)
    try:
        code = running.wait(timeout=rng.uniform(0.2, 3))
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait(timeout=60)
        code = start(tree, model, out).wait(timeout=120)
    assert code == 4
    assert out.read_bytes() == unbroken.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.csv"]


def test_however_the_files_are_given_they_have_the_same_rows(
    run_here, tree, model, unbroken, tmp_path, monkeypatch
) -> None:
    files = [str(file) for file in files_of(tree)]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{file}\n" for file in files))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\0".join(files).encode())))
    expected = [row | {"path": ""} for row in rows_of(unbroken)]
    for given in ([tmp_path / "list.csv"], files, [f"{tree}/*"], ["-"]):
        code, out, err = run_here("predict", *given, "--model", model, "-o", "-", "--batch", 2, "--workers", 0)
        assert code == 4, err
        assert [Path(row["path"]).name for row in table(out)] == [Path(file).name for file in files]
        assert [row | {"path": ""} for row in table(out)] == expected


def memory(process: subprocess.Popen[bytes]) -> int:
    """The bytes of a process and of those it started, pages that they share counted once."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    tree, size = {process.pid}, 0
    while len(tree) > size:
        size = len(tree)
        tree |= {pid for pid, parent in parents.items() if parent in tree}
    total = 0
    for pid in tree:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:
            continue
    return 1024 * total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell shared memory")
def test_memory_for_20000_scans_is_that_for_200(tree, model, tmp_path) -> None:
    most = {}
    for number in (200, 20_000):
        folder = tmp_path / str(number)
        folder.mkdir()
        for n in range(number):
            (folder / f"{n:05}.png").symlink_to(tree / "p0" / f"0{n % 6}.png")
        running = start(folder, model, tmp_path / f"{number}.csv")
        most[number] = 0
        while running.poll() is None:
            most[number] = max(most[number], memory(running))
            time.sleep(0.1)
        assert running.returncode == 0
    assert most[20_000] < 1.1 * most[200]
