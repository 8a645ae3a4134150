"""Worker processes: order, bad scans, crashes, hangs, kills, clean streams, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damcli.data import feeding
from damcli.data.images import Contract
from damcli.data.workers import Decoded, decode
from damcli.errors import MachineError

CONTRACT = Contract(size=24, channels=1)


@pytest.fixture
def scans(tmp_path) -> list[Path]:
    """Twenty pictures with a table, a broken picture and a name that is nowhere among them."""
    paths = []
    for number in range(20):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((30, 30), number * 10, np.uint8)).save(path)
        paths.append(path)
    paths[3].write_text("Path,Sex\n")
    paths[8].write_bytes(paths[8].read_bytes()[:50])
    paths[15] = tmp_path / "nowhere.png"
    return paths


def same(one: list[Decoded], other: list[Decoded]) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and a[2:] == b[2:] and np.array_equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


def workers_of(pid: int | str = "self") -> set[int]:
    """The processes that this one, or another one, has started and not yet seen the end of."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for listed in lists for child in listed.read_text().split()}


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.005)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_are_those_of_this_process_in_order(scans, workers):
    expected = list(decode(scans, CONTRACT, workers=0))
    assert [d.status for d in expected].count("ok") == 17
    assert [expected[n].status for n in (3, 8, 15)] == ["skipped", "failed", "failed"]
    assert all(bool(d.reason) == (d.pixels is None) for d in expected)
    assert same(list(decode(iter(scans), CONTRACT, workers)), expected)


def test_colour_and_large_contracts_pass_the_pipe_whole(scans):
    contract = Contract(size=900, channels=3, fit="stretch")
    assert same(list(decode(scans, contract, workers=2)), list(decode(scans, contract, workers=0)))


def test_no_scans_start_no_process():
    assert list(decode([], CONTRACT, workers=3)) == []


def test_what_is_in_flight_is_bounded(scans):
    taken = count()
    paths = (scans[0] for _ in range(100_000) if next(taken) >= 0)
    results = decode(paths, CONTRACT, workers=2)
    for _ in range(300):
        next(results)
    assert next(taken) <= 300 + 2 * 64
    results.close()


def test_a_worker_killed_from_outside_costs_nothing(scans):
    results = decode(scans * 20, CONTRACT, workers=2)
    seen = [next(results) for _ in range(20)]
    for pid in workers_of():
        os.kill(pid, signal.SIGKILL)
    assert same(seen + list(results), list(decode(scans * 20, CONTRACT, workers=0)))


def test_a_decoder_that_hangs_costs_its_scan(scans):
    paths = scans * 10
    results = decode(paths, CONTRACT, workers=1, seconds=2)
    seen = [next(results)]
    (stopped,) = workers_of()
    os.kill(stopped, signal.SIGSTOP)
    seen += list(results)
    assert not running(stopped)
    late = [d for d in seen if d.reason == "the decoder took longer than 2 s"]
    assert len(late) == 1
    expected = list(decode(paths, CONTRACT, workers=0))
    expected[late[0].index] = late[0]
    assert same(seen, expected)


def test_closing_early_ends_the_workers(scans):
    results = decode(scans * 50, CONTRACT, workers=2)
    next(results)
    pids = workers_of()
    results.close()
    assert len(pids) == 2
    assert not any(running(pid) for pid in pids)


def test_an_error_in_the_paths_ends_the_workers(scans):
    def paths() -> Iterator[Path]:
        yield from scans * 20
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        list(decode(paths(), CONTRACT, workers=2))


@pytest.mark.parametrize("python", ["/bin/false", "/nowhere/python"])
def test_workers_that_cannot_start(scans, monkeypatch, python):
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(MachineError, match="cannot start"):
        list(decode(scans, CONTRACT, workers=1))


@pytest.mark.parametrize("killed", [2, 3])
def test_a_process_killed_before_it_is_ready_is_no_fault_of_the_scan(scans, tmp_path, monkeypatch, killed) -> None:
    starts = tmp_path / "starts"
    kill = (
        f"import os; open({str(starts)!r}, 'ab').write(b'.')\n"
        f"if os.path.getsize({str(starts)!r}) <= {killed}: os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setattr(feeding, "_START", kill + feeding._START)
    decoded = decode(scans[:2], CONTRACT, workers=1)
    if killed < feeding.STARTS:
        assert [scan.status for scan in decoded] == ["ok", "ok"]
    else:
        with pytest.raises(MachineError, match=r"cannot start: they are killed \(SIGKILL\)"):
            list(decoded)


def test_names_that_are_no_unicode(tmp_path, scans):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sc\xffan \n.png"))
    odd.write_bytes(scans[1].read_bytes())
    assert [d.status for d in decode([odd], CONTRACT, workers=1)] == ["ok"]


def test_a_worker_cannot_take_all_memory():
    program = "from damcli.data.decoding import _limit_memory; _limit_memory(); bytearray(2**34)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.rstrip().endswith("MemoryError")


def script(tmp_path: Path, scans: list[Path], then: str) -> subprocess.Popen[str]:
    """A program without a `__main__` guard that decodes for ever, says so, and does `then`."""
    program = f"""
import itertools, os, signal, sys, time
from pathlib import Path
from damcli.data.images import Contract
from damcli.data.workers import decode
results = decode(itertools.repeat(Path({str(scans[0])!r})), Contract(size=24, channels=1), workers=2)
for _ in range(500):
    next(results)
print("started", flush=True)
{then}
"""
    (tmp_path / "program.py").write_text(program)
    return subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_program(tmp_path, scans, killer):
    program = script(tmp_path, scans, "for _ in results: pass")
    assert program.stdout.readline() == "started\n"
    pids = workers_of(program.pid)
    assert len(pids) == 2
    assert all(running(pid) for pid in pids)
    os.killpg(program.pid, killer)  # the whole group, as a terminal does on Ctrl-C
    try:
        _, errors = program.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        raise
    wait_until(lambda: not any(running(pid) for pid in pids))
    assert program.returncode == -killer
    assert errors.count("Traceback") == (killer == signal.SIGINT)


def test_decoders_write_on_no_stream(tmp_path):
    from pydicom.data import get_testdata_file

    noisy = [
        get_testdata_file(n) for n in ("JPEG2000-embedded-sequence-delimiter.dcm", "badVR.dcm", "MR_truncated.dcm")
    ]
    program = f"""
from pathlib import Path
from damcli.data.images import Contract
from damcli.data.workers import decode
paths = map(Path, {noisy!r})
assert [d.status for d in decode(paths, Contract(size=24, channels=1), workers=1)] == ["failed"] * 3
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_imports_neither_torch_nor_the_command_line():
    program = (
        "import sys, damcli.data.decoding; print({'torch', 'typer', 'rich', 'polars', 'pydicom'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_a_folder_of_real_dicom_files(test_data):
    paths = sorted((test_data / "dicom").iterdir())
    decoded = {paths[d.index].name: d for d in decode(paths, Contract(size=64, channels=1), workers=2)}
    assert {name for name, d in decoded.items() if d.status == "skipped"} == {"SOURCE.txt", "manifest.csv"}
    assert "leg_RG3_JPLY" in {name for name, d in decoded.items() if d.status == "failed"}
    assert {name for name, d in decoded.items() if d.status == "failed"} <= {"leg_RG3_JPLY", "hip_RG2_JPLY_fixed.dcm"}
    for d in decoded.values():
        assert (d.pixels is None) == (d.status != "ok") == bool(d.reason)
