"""`--engine ray` through the command line: what `--engine local` gives, on URLs too, killed and gone on with."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from damcli.data.store import read_info

pytestmark = pytest.mark.distributed
DAMCLI = "from damcli.cli import main; main()"
# What Ray writes: times and files of its source, progress, tips.
OF_RAY = re.compile(r"\.(cc|h|py):\d|INFO|WARN|ERROR|Traceback|raylet|\(pid=|it/s|Tip:")


@pytest.fixture
def damcli(tmp_path, monkeypatch):
    """Returns `damcli(*arguments, code=0)`: stdout and stderr of that command line, ended with this code."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments, code=0):
        ended = subprocess.run([sys.executable, "-c", DAMCLI, *map(str, arguments)], capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr
        assert not OF_RAY.search(ended.stdout + ended.stderr), ended.stderr
        return ended.stdout, ended.stderr

    return run


@pytest.fixture
def scans(tmp_path):
    """Pictures, DICOM files of several studies, a broken one, and a table."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for n in range(8):
        pixels = np.random.default_rng(n).integers(0, 256, (50, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm"):
        shutil.copy(get_testdata_file(name), folder)
    labels = [f"{n}.png,{n % 2},{n // 2}" for n in range(8)]
    (folder / "labels.csv").write_text("path,sick,patient\n" + "\n".join(labels))
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predicted(damcli, scans, model_file, out, *engine):
    """Score the scans; return what lies in `out`, a folder or the URL of one, where the maps lie beside it."""
    folder = Path(out.removeprefix("file://"))
    folder.mkdir()
    told, _ = damcli(
        "predict", scans, "--model", model_file, "-o", f"{out}/scores.csv", "--batch", 3, "--by", "study", "--keep-ids",
        "--heatmaps", folder / "maps", *engine, code=4,
    )  # fmt: skip
    assert told == f"{out}/scores.csv\n{out}/scores-scans.csv\n"
    return files(folder)


@pytest.mark.parametrize("place", ["file://", pytest.param("", marks=pytest.mark.slow)])
def test_predict_gives_what_it_gives_here(damcli, scans, model_file, two_nodes, tmp_path, place):
    here = predicted(damcli, scans, model_file, f"{tmp_path}/here")
    engine = ("--engine", "ray", "--address", two_nodes.address)
    there = predicted(damcli, f"{place}{scans}", model_file, f"{place}{tmp_path}/there", *engine)
    assert len(here) == 2 + 2 * 11
    assert there == here
    table = pl.read_csv(tmp_path / "there" / "scores.csv", infer_schema=False)
    assert "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322" in table["study"].to_list()
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock")


def prepared(damcli, scans, out, *engine):
    told, _ = damcli(
        "prepare", "table", f"{scans}/labels.csv", "-o", out, "--patient-column", "patient", "--label-columns", "sick",
        "--max-rejected", 0.2, "--size", 64, *engine, code=4,
    )  # fmt: skip
    assert told.endswith(f"\n{out}\n")
    return files(Path(out.removeprefix("file://")))


def test_prepare_gives_what_it_gives_here(damcli, scans, two_nodes, tmp_path, monkeypatch):
    here = prepared(damcli, scans, f"{tmp_path}/here")
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    there = prepared(damcli, f"file://{scans}", f"file://{tmp_path}/there", "--engine", "ray")
    images = [name for name in here if name.endswith(".npy")]
    assert images
    assert there.keys() == here.keys()
    assert [there[name] for name in images] == [here[name] for name in images]
    tables = [pl.read_parquet(tmp_path / name / "manifest.parquet") for name in ("here", "there")]
    assert tables[1]["path"].to_list() == [f"file://{path}" for path in tables[0]["path"]]
    assert tables[1].drop("path").equals(tables[0].drop("path"))
    assert read_info(tmp_path / "there").rejected == 1


@pytest.mark.slow
def test_prepare_here_on_a_cluster_of_its_own(damcli, scans, tmp_path):
    here = prepared(damcli, scans, f"{tmp_path}/here")
    assert prepared(damcli, scans, f"{tmp_path}/there", "--engine", "ray", "--workers", 2) == here


@pytest.fixture
def many(tmp_path):
    """Scans that take their time."""
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(48):
        path = folder / f"{n:03}.png"
        if n < 3:
            Image.fromarray(np.random.default_rng(n).integers(0, 256, (2000, 2400), dtype=np.uint8)).save(path)
        else:
            path.hardlink_to(folder / f"{n % 3:03}.png")
    (folder / "labels.csv").write_text("path,sick\n" + "\n".join(f"{n:03}.png,{n % 2}" for n in range(48)))
    return folder


def broken_off(number, begun, *arguments):
    """Start a command line, send it the signal once `begun()` is true, and return its exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", DAMCLI, *map(str, arguments)], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            while not begun():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            os.kill(process.pid, number)
            said = process.communicate()[1]
        finally:
            process.kill()
    assert not OF_RAY.search(said), said
    return process.returncode


def test_begun_here_and_broken_off_on_a_cluster_it_ends_as_if_never_stopped(
    damcli, many, model_file, two_nodes, tmp_path
):
    command = ("predict", many, "--model", model_file, "--batch", 4, "-o")
    damcli(*command, tmp_path / "whole.csv")
    journal, size = tmp_path / ".scores.csv.journal", 0

    def grown():
        return journal.exists() and journal.stat().st_size > size + 1000

    # One at a time, so that it is not done before it is told.
    slow = (tmp_path / "scores.csv", "--workers", 1)
    assert broken_off(signal.SIGKILL, grown, *command, *slow) == -signal.SIGKILL
    size = journal.stat().st_size
    ray = ("--engine", "ray", "--address", two_nodes.address, "--threads", 1)
    assert broken_off(signal.SIGINT, grown, *command, *slow, *ray) == 130
    assert not (tmp_path / "scores.csv").exists()
    _, said = damcli(*command, tmp_path / "scores.csv")
    assert "inputs were done before" in said
    assert (tmp_path / "scores.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.slow
def test_a_dataset_begun_on_a_cluster_is_finished_on_it(damcli, many, two_nodes, tmp_path):
    command = ("prepare", "table", many / "labels.csv", "--label-columns", "sick", "--allow-leaks", "-o")
    damcli(*command, tmp_path / "whole")
    ray = ("--engine", "ray", "--address", two_nodes.address)

    def begun():
        return any((tmp_path / "part").glob("*images*"))

    assert broken_off(signal.SIGKILL, begun, *command, tmp_path / "part", *ray) == -signal.SIGKILL
    assert not (tmp_path / "part" / "dataset.json").exists()
    damcli(*command, tmp_path / "part", *ray)
    assert files(tmp_path / "part") == files(tmp_path / "whole")


def test_a_cluster_that_is_not_there_leaves_nothing(damcli, scans, model_file, tmp_path):
    for url in ("", "file://"):
        out = f"{url}{tmp_path}/out/scores.csv"
        told, said = damcli(
            "predict", f"{url}{scans}", "--model", model_file, "-o", out, "--heatmaps", tmp_path / "maps",
            "--engine", "ray", "--address", "127.0.0.1:1", code=5,
        )  # fmt: skip
        assert (told, "error: no Ray cluster is at this address" in said) == ("", True)
    assert {path.name for path in tmp_path.iterdir()} <= {"scans", "cache", "out", "maps"}
    assert not [path for name in ("out", "maps") for path in (tmp_path / name).rglob("*")]
