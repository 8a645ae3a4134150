"""Lots in shared memory: always the same ones, whole, bounded, and nothing left behind, whoever is killed and when."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from damcli.data.archives import Place, Refused
from damcli.data.images import Contract
from damcli.data.ring import Ring
from damcli.data.workers import Lot, batches, decode
from damcli.errors import MachineError
from tests.data.test_workers import running, wait_until, workers_of

CONTRACT = Contract(size=24, channels=1)
# Takes the place of a decoder in the workers, which find it first: files say what it shall do.
DECODER = """
import os
def decode_jpeg_header(data):
    what = data.split()[1]
    while what == b"hang":
        open(f"{__file__}.{os.getpid()}", "w").close()
    if what == b"abort":
        os.abort()
    raise ValueError("nothing is decoded here")
"""


@pytest.fixture
def places(tmp_path) -> list[Path | Place | Refused]:
    """Thirty pictures; among them a table, a broken one, a refused one, and one whose bytes are in memory."""
    paths: list[Path | Place | Refused] = []
    for number in range(30):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((30, 30), number * 8, np.uint8)).save(path)
        paths.append(path)
    (tmp_path / "3.png").write_text("Path,Sex\n")
    (tmp_path / "8.png").write_bytes((tmp_path / "8.png").read_bytes()[:50])
    paths[11] = Refused("the member is encrypted")
    paths[12] = Place(tmp_path / "scans.tar.gz", content=(tmp_path / "12.png").read_bytes())
    return paths


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """Returns a scan whose decoder hangs or aborts."""
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "simplejpeg.py").write_text(DECODER)
    monkeypatch.syspath_prepend(tmp_path / "decoder")

    def make(what: str) -> Path:
        (tmp_path / f"{what}.jpg").write_bytes(b"\xff\xd8\xff\xe0 " + what.encode() + b" ")
        return tmp_path / f"{what}.jpg"

    return make


def taken(lots: Iterator[Lot]) -> list[tuple[list, np.ndarray]]:
    """What is in the lots, each released before the next one is asked for."""
    found = []
    for lot in lots:
        found.append((lot.scans, lot.images.copy()))
        lot.release()
    return found


def assert_same(one: list[tuple[list, np.ndarray]], other: list[tuple[list, np.ndarray]]) -> None:
    assert [scans for scans, _ in one] == [scans for scans, _ in other]
    for (_, images), (_, others) in zip(one, other, strict=True):
        np.testing.assert_array_equal(images, others, strict=True)


@pytest.mark.parametrize(("workers", "size"), [(0, 4), (0, 100), (3, 1), (3, 7), (3, 30)])
def test_a_lot_is_always_the_same_consecutive_scans(places, workers, size):
    scans = list(decode(places, CONTRACT, workers=0))
    found = taken(batches(iter(places), CONTRACT, workers, size))
    assert [len(lot) for lot, _ in found] == [len(scans[start : start + size]) for start in range(0, 30, size)]
    assert [scan for lot, _ in found for scan in lot] == [scan._replace(pixels=None) for scan in scans]
    for number, (_, images) in enumerate(found):
        own = [scan.pixels for scan in scans[number * size : (number + 1) * size] if scan.pixels is not None]
        np.testing.assert_array_equal(images, np.array(own, np.uint8).reshape(-1, 24, 24), strict=True)
        assert images.flags.c_contiguous


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_refused_or_in_memory_is_a_scan_like_others(places, workers):
    scans = list(decode(places, CONTRACT, workers))
    assert (scans[11].status, scans[11].reason) == ("failed", "the member is encrypted")
    assert (scans[12].pixels == 96).all()
    assert [scan.index for scan in scans if scan.status != "ok"] == [3, 8, 11]


@pytest.mark.parametrize("workers", [0, 2])
def test_lots_of_which_nothing_can_be_shown(places, workers):
    given = [places[3], places[8], places[11]] * 4
    found = taken(batches(given, Contract(size=16, channels=3), workers, size=6))
    assert [images.shape for _, images in found] == [(0, 16, 16, 3)] * 2
    assert [scan.status for lot, _ in found for scan in lot] == ["skipped", "failed", "failed"] * 4
    assert taken(batches([], CONTRACT, workers, size=6)) == []
    assert len(taken(batches([Refused("nothing")] * 500, CONTRACT, workers, size=6))) == 84


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize("workers", [0, 1])
def test_ids_come_where_they_are_asked_for(tmp_path, workers):
    import pydicom

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PatientID, dataset.StudyInstanceUID = "Ä\\B 7 ", "1.2.3"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.save_as(tmp_path / "scan.dcm")
    dataset.Rows = 1000  # more than there are
    dataset.save_as(tmp_path / "cut.dcm")
    dataset.PatientID, dataset.StudyInstanceUID = None, "1" * 5000
    dataset.save_as(tmp_path / "none.dcm")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "scan.png")
    given = [tmp_path / name for name in ("scan.dcm", "cut.dcm", "none.dcm", "scan.png")]
    ((scans, _),) = taken(batches(given, CONTRACT, workers, size=9, ids=True))
    assert [scan.status for scan in scans] == ["ok", "failed", "failed", "ok"]
    assert [(scan.patient, scan.study) for scan in scans] == [
        ("Ä\\B 7", "1.2.3"),
        ("Ä\\B 7", "1.2.3"),
        ("", "1" * 256),
        ("", ""),
    ]
    ((scans, _),) = taken(batches(given, CONTRACT, workers, size=9))
    assert {(scan.patient, scan.study) for scan in scans} == {("", "")}


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_lot_stays_as_it_is_until_it_is_released(places):
    with closing(batches(places * 20, CONTRACT, 2, size=10, ahead=3)) as lots:
        kept = next(lots)
        images = kept.images.copy()
        rest = taken(lots)
    assert len(rest) == 59
    np.testing.assert_array_equal(kept.images, images)  # also after the end
    assert_same([(kept.scans, images), *rest], taken(batches(places * 20, CONTRACT, 0, size=10)))


def test_no_more_lots_are_out_than_allowed(places):
    with closing(batches(places * 20, CONTRACT, 2, size=10, ahead=2)) as lots:
        first, second = next(lots), next(lots)
        more: list[Lot] = []
        thread = threading.Thread(target=lambda: more.extend([next(lots), next(lots)]), daemon=True)
        thread.start()
        for _ in range(3):  # of one lot, count once
            first.release()
        thread.join(0.5)
        assert thread.is_alive()
        second.release()
        thread.join(30)
        assert [lot.scans[0].index for lot in more] == [20, 30]


def test_a_slow_consumer_holds_up_the_source(places):
    number = count()
    source = (places[0] for _ in range(100_000) if next(number) >= 0)
    with closing(batches(source, CONTRACT, 2, size=8, ahead=3)) as lots:
        for _ in range(50):
            next(lots).release()
        time.sleep(0.2)
        assert next(number) <= 50 * 8 + 2 * 64 + 3 * 8


def test_bytes_on_their_way_to_workers_are_bounded(tmp_path):
    number = count()
    data = b"x" * 2**24
    source = (Place(tmp_path / "a.tgz", content=data) for _ in range(60) if next(number) >= 0)
    with closing(decode(source, CONTRACT, workers=2)) as results:
        assert next(results).status == "skipped"
        assert next(number) <= 17
        rest = list(results)
    assert [scan.index for scan in rest] == list(range(1, 60))


def test_memory_without_memfd(places, monkeypatch):
    expected = taken(batches(places, CONTRACT, 0, size=7))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert_same(taken(batches(places, CONTRACT, 2, size=7)), expected)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(MachineError, match="no space is left"):
            Ring(400, (100, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_holds_for_shared_memory_too_and_is_said():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(MachineError, match="40,000 bytes of shared memory cannot be had") as caught:
            Ring(4, (100, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "--workers 0" in str(caught.value.fix)


# --- killed, hanging, closed ----------------------------------------------------------------------------------------


def test_workers_killed_at_any_moment_leave_no_torn_image(tmp_path):
    """Large images of one value each, so that a worker mostly writes, and a half-written one would show."""
    contract = Contract(size=1500, channels=3, fit="stretch")
    for value in range(5):
        Image.fromarray(np.full((20, 20), 40 + value, np.uint8)).save(tmp_path / f"{value}.png")
    rng = random.Random(0)
    given = [tmp_path / f"{n % 5}.png" for n in range(40)]
    with closing(batches(given, contract, 2, size=4, ahead=1)) as lots:
        for number, lot in enumerate(lots):
            if number % 3 == 1:
                time.sleep(rng.random() / 50)
                for pid in workers_of():
                    os.kill(pid, signal.SIGKILL)
            assert [scan.status for scan in lot.scans] == ["ok"] * 4
            assert [(image == 40 + n % 5).all() for image, n in zip(lot.images, count(4 * number))] == [True] * 4
            lot.release()
    assert number == 9


def test_decoders_that_hang_or_crash_cost_their_scan(places, bad):
    given = [places[0], bad("hang"), places[1], bad("abort"), places[2], bad("nothing")]
    ((scans, images),) = taken(batches(given, CONTRACT, 2, size=10, seconds=2))
    assert [scan.status for scan in scans] == ["ok", "failed", "ok", "failed", "ok", "failed"]
    assert scans[1].reason == "the decoder took longer than 2 s"
    assert scans[3].reason == "the decoder crashed (SIGABRT)"
    assert images[:, 0, 0].tolist() == [0, 8, 16]


def test_a_late_worker_is_dead_before_its_lot_is_handed_on(places):
    with closing(batches(places * 40, CONTRACT, 1, size=10, seconds=1)) as lots:
        next(lots).release()
        (stopped,) = workers_of()
        os.kill(stopped, signal.SIGSTOP)
        for lot in lots:
            if any("took longer" in scan.reason for scan in lot.scans):
                break
            lot.release()
        assert not Path(f"/proc/{stopped}").exists()
        before = lot.images.copy()
        with pytest.raises(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
        np.testing.assert_array_equal(lot.images, before)


def test_an_error_where_lots_are_used_ends_the_workers(places):
    pids: set[int] = set()
    with pytest.raises(RuntimeError, match="scoring failed"), closing(batches(places * 9, CONTRACT, 2, 5)) as lots:
        for lot in lots:
            pids = workers_of()
            kept = lot.images, lot.images.copy()
            raise RuntimeError("scoring failed")
    assert len(pids) == 2
    assert not any(running(pid) for pid in pids)
    np.testing.assert_array_equal(*kept)
    lot.release()  # late, and without harm


@pytest.mark.parametrize("hangs", [False, True])
def test_nothing_is_left_of_a_program_that_is_killed(tmp_path, places, bad, hangs):
    program = f"""
import sys
sys.path[:] = {sys.path!r}
from itertools import chain, repeat
from pathlib import Path
from damcli.data.images import Contract
from damcli.data.workers import batches
places = chain(repeat({str(places[0])!r}, 400), repeat({str(bad("hang") if hangs else places[1])!r}))
for lot in batches(map(Path, places), Contract(size=24, channels=1), 2, 8):
    lot.release()
    print("a lot", flush=True)
"""
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert killed.stdout.readline() == "a lot\n"
    wait_until(lambda: len(workers_of(killed.pid)) == 2)
    pids = workers_of(killed.pid)
    if hangs:
        wait_until(lambda: all((tmp_path / "decoder" / f"simplejpeg.py.{pid}").exists() for pid in pids))
    killed.kill()
    killed.wait()
    killed.stdout.close()
    wait_until(lambda: not any(running(pid) for pid in pids))
    assert not [*(tmp_path / "temporary").iterdir(), *Path("/dev/shm").glob("*damcli*")]
