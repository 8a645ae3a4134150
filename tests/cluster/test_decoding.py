"""Decoding on a cluster: the same as here, whatever the files hold, in order, and with bounded memory."""

import os
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_files

from damcli.cluster import waves
from damcli.cluster.decoding import _Decoder, check_seen, decode
from damcli.cluster.session import session
from damcli.data import workers
from damcli.data.archives import Place, Refused
from damcli.data.images import Contract
from damcli.errors import MachineError

pytestmark = pytest.mark.distributed
CONTRACT = Contract(size=24, channels=1)

# What a decoder process does when it opens files of these names, where it finds this as it starts.
POISON = """
import os, sys, time
def opened(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        if arguments[0].endswith("crash.png"):
            os.abort()
        if arguments[0].endswith("hang.png"):
            time.sleep(600)
        if arguments[0].endswith("hidden.png"):
            raise FileNotFoundError(2, "No such file or directory")
if any("damcli.data.decoding" in argument for argument in sys.orig_argv):
    sys.addaudithook(opened)
"""


@pytest.fixture
def connected(two_nodes):
    with session(two_nodes.address) as found:
        yield found


@pytest.fixture
def make_pictures(tmp_path):
    """Returns `make(number)`: as many different pictures."""

    def make(number):
        paths = [tmp_path / f"{n}.png" for n in range(number)]
        for n, path in enumerate(paths):
            Image.fromarray(np.random.default_rng(n).integers(0, 256, (30, 20), dtype=np.uint8)).save(path)
        return paths

    return make


def plain(scans):
    return [scan if scan.pixels is None else scan._replace(pixels=scan.pixels.tobytes()) for scan in scans]


def test_scans_of_every_kind_are_those_of_this_process(connected, make_pictures, tmp_path, monkeypatch):
    paths = make_pictures(6)
    paths[1].write_text("path,sick\n")
    paths[2].write_bytes(paths[2].read_bytes()[:50])
    paths[3].write_bytes(b"")
    odd = tmp_path / os.fsdecode(b"odd\xff #xywh=1,2,3,4.png")
    odd.write_bytes(paths[0].read_bytes())
    paths += [
        odd,
        tmp_path,
        tmp_path / "nowhere.dcm",
        Path(f"{paths[0]}#xywh=3,4,10,12"),
        Path(f"{paths[0]}#xywh=30,0,9,9"),
    ]
    paths += [Path(file) for file in sorted(get_testdata_files())]
    monkeypatch.chdir(tmp_path)
    paths.append(Path("4.png"))
    for contract in (CONTRACT, Contract(size=40, channels=3, fit="crop")):
        expected = plain(workers.decode(paths, contract, workers=2))
        assert {scan.status for scan in expected} == {"ok", "failed", "skipped"}
        assert plain(decode(connected, paths, contract)) == expected


@pytest.mark.slow
def test_real_scans_are_those_of_this_process(connected, test_data):
    paths = [path for path in sorted((test_data / "dicom").iterdir()) if path.is_file()]
    contract = Contract(size=224, channels=1)
    assert plain(decode(connected, paths, contract)) == plain(workers.decode(paths, contract, workers=2))


def test_waves_give_every_scan_once_in_order_and_take_few_ahead(connected, make_pictures, monkeypatch):
    monkeypatch.setattr(waves, "FIRST", 1)
    monkeypatch.setattr(waves, "WAVE", 2)
    monkeypatch.setattr("damcli.cluster.decoding.SCANS", 8)
    paths, taken = make_pictures(70), []

    def finding():
        for path in paths:
            taken.append(path)
            yield path

    scans = []
    for scan in decode(connected, finding(), CONTRACT):
        scans.append(scan)
        # The wave that it is in, and the next one.
        assert len(taken) <= len(scans) - 1 + 2 * 2 * 8
    assert plain(scans) == plain(workers.decode(paths, CONTRACT, workers=0))
    assert list(decode(connected, [], CONTRACT)) == []


def test_an_error_where_scans_are_found_comes_behind_the_scans_before(connected, make_pictures, monkeypatch):
    monkeypatch.setattr(waves, "FIRST", 1)
    monkeypatch.setattr("damcli.cluster.decoding.SCANS", 4)
    paths = make_pictures(4)

    def finding():
        yield from paths
        raise MachineError("the disk is gone")

    scans = []
    with pytest.raises(MachineError, match="the disk is gone"):
        for scan in decode(connected, finding(), CONTRACT):
            scans.append(scan)
    assert [scan.index for scan in scans] == [0, 1, 2, 3]


def test_left_in_the_middle_it_takes_no_more_scans_and_gives_the_cpus_back(connected, make_pictures):
    import ray

    paths, taken = make_pictures(20), []

    def finding():
        for path in cycle(paths):
            taken.append(path)
            yield path

    scans = decode(connected, finding(), CONTRACT)
    assert [next(scans).index for _ in range(30)] == list(range(30))
    scans.close()
    number = len(taken)
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU") != connected.cpus:
        assert time.monotonic() < end, "tasks are still at work"
        time.sleep(0.05)
    assert len(taken) == number


MEASURED = """
import sys
from itertools import cycle, islice
from pathlib import Path
from damcli.cluster.decoding import decode
from damcli.cluster.session import session
from damcli.data.images import Contract

with session(sys.argv[1]) as connected:
    paths = islice(cycle(Path(sys.argv[2]).glob("*.png")), int(sys.argv[3]))
    assert sum(1 for _ in decode(connected, paths, Contract(size=64, channels=1))) == int(sys.argv[3])
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_scans(two_nodes, make_pictures, tmp_path):
    make_pictures(50)
    few, many = (
        int(subprocess.check_output([sys.executable, "-c", MEASURED, two_nodes.address, tmp_path, number]))
        for number in ("2000", "20000")
    )
    # In KB; the pixels alone of what is more would be 74 MB.
    assert many - few < 40_000


@pytest.mark.slow
def test_poison_costs_its_own_scan_and_what_only_nodes_do_not_see_ends_the_run(cluster, make_pictures, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(POISON)
    paths = make_pictures(40)
    for n, name in ((3, "crash.png"), (5, "hang.png"), (20, "crash.png"), (39, "hidden.png")):
        paths[n] = paths[n].rename(tmp_path / f"{n}{name}")
    good = [n for n in range(39) if n not in (3, 5, 20)]
    cluster.add(PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with session(cluster.address) as connected:
        scans = list(decode(connected, paths[:39], CONTRACT, seconds=5))
        assert [scan.index for scan in scans] == list(range(39))
        assert [scan.index for scan in scans if scan.status == "ok"] == good
        assert {n: scans[n].reason for n in (3, 5, 20)} == {
            3: "the decoder crashed (SIGABRT)",
            5: "the decoder took longer than 5 s",
            20: "the decoder crashed (SIGABRT)",
        }
        expected = {
            scan.index: scan.pixels.tobytes() for scan in workers.decode(paths, CONTRACT, 0) if scan.index in good
        }
        assert {n: scans[n].pixels.tobytes() for n in good} == expected
        with pytest.raises(MachineError, match=rf"node {connected.nodes[0].name} .*\n.*39hidden.png"):
            list(decode(connected, paths[38:], CONTRACT))


def test_fetched_files_that_wait_for_the_decoder_have_a_limit_of_bytes(make_pictures, monkeypatch):
    monkeypatch.setattr("damcli.cluster.decoding.CONTENT_BYTES", 2 * 600)
    paths, waiting = make_pictures(20), []
    assert all(path.stat().st_size > 600 for path in paths)
    decoder = _Decoder(CONTRACT, False, 60.0)

    def fetched():
        for path in paths:
            waiting.append(len(decoder.out))
            yield Place(path, content=path.read_bytes())

    try:
        assert plain(decoder.decode(fetched())) == plain(workers.decode(paths, CONTRACT, workers=0))
    finally:
        decoder.close()
    assert max(waiting) == 1


def test_a_file_that_can_be_read_nowhere_is_a_failed_scan(tmp_path):
    reason = "the file cannot be read: No such file or directory"
    check_seen("10.0.0.7", Place(tmp_path / "nowhere.png"), reason)
    check_seen("10.0.0.7", Refused(reason), reason)
    (tmp_path / "here.png").write_bytes(b"bytes")
    check_seen("10.0.0.7", Place(tmp_path / "here.png"), "the file is empty")
    for path in (tmp_path / "here.png", Path(f"{tmp_path / 'here.png'}#xywh=1,2,3,4")):
        with pytest.raises(MachineError, match="node 10.0.0.7 of the Ray cluster does not see") as refused:
            check_seen("10.0.0.7", Place(path), reason)
        assert refused.value.where == tmp_path / "here.png"
