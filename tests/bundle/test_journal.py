"""The journal of predict: whatever happens to a run, the next one ends with the rows of an unbroken one."""

import hashlib
import json
import os
import random
import resource
import stat
import subprocess
import sys
import time
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from damcli.bundle import journal
from damcli.bundle.table import Row
from damcli.data.archives import Place
from damcli.data.inputs import Input
from damcli.errors import DataError, MachineError, UsageError

SETTINGS = {"model": "a", "batch": 3, "size": (320, 320)}
SIZE = 3


def inputs_of(number):
    odd = os.fsdecode(b"na\xefve \n.dcm")
    return [Input(odd if index == 1 else f"a/{index}.dcm", Place(Path("a")), f"{index} 7") for index in range(number)]


def lot_of(inputs):
    """Rows of every kind; as on a GPU, the scores depend on which inputs are scored together."""
    seed = hashlib.sha256(repr(inputs).encode()).digest()
    for place, one in enumerate(inputs):
        if one.name.endswith(("2.dcm", "5.dcm")):
            yield Row(one.name, "failed", 'truncated "pixel data"\n', None, patient="p1")
        elif one.name.endswith("6.dcm"):
            yield Row(one.name, "skipped", "no image", None)
        else:
            scores = np.frombuffer(seed, np.uint16)[[place, place + 1]].astype(np.float32) / np.float32(65537)
            yield Row(one.name, "ok", "", scores, "no VOI window", "p1", "s\udcff")


def run(target, inputs, stop=None, size=SIZE, settings=SETTINGS, shown=str):
    """Do as predict does, `stop` lots at most; return how many rows were kept, the note, and all rows."""
    with journal.open(target, settings) as kept:
        rest = kept.resume(iter(inputs), shown)
        done = kept.done
        for _ in range(sys.maxsize if stop is None else stop):
            if not (lot := list(islice(rest, size))):
                break
            kept.append(lot, [row._replace(path=shown(row.path)) for row in lot_of(lot)])
        if stop is not None:
            return done, kept.note, None
        rows = [plain(row) for row in kept.rows()]
        kept.finish()
    assert list(target.parent.iterdir()) == [], "a finished run leaves nothing behind"
    return done, kept.note, rows


def plain(row):
    return row._replace(scores=None if row.scores is None else (row.scores.dtype, row.scores.tobytes()))


def unbroken(inputs, size=SIZE):
    return [plain(row) for start in range(0, len(inputs), size) for row in lot_of(inputs[start : start + size])]


@pytest.fixture
def target(tmp_path):
    return tmp_path / "scores.csv"


@pytest.fixture
def whole(target):
    """The bytes of a journal of 8 inputs, all done, in lots of 3, 3 and 2, and where its lines end."""
    run(target, inputs_of(8), stop=9)
    content = journal.place(target).read_bytes()
    ends = np.cumsum([len(line) for line in content.splitlines(keepends=True)])
    assert len(ends) == 4
    return content, ends


def test_killed_at_any_byte_the_next_run_ends_with_the_same_rows(target, whole):
    content, ends = whole
    inputs = inputs_of(8)
    expected = unbroken(inputs)
    # A lone lot may have been a last one, and smaller: with two of one size it is known what a lot is.
    kept_after = [0, 0, 0, 6, 8]
    for cut in range(len(content) + 1):
        journal.place(target).write_bytes(content[:cut])
        done, note, rows = run(target, inputs)
        assert (done, rows) == (kept_after[int((ends <= cut).sum())], expected), cut
        assert note == "" or 0 < cut < ends[0]


def test_damage_to_any_byte_costs_the_lots_behind_it_and_is_said(target, whole):
    content, ends = whole
    inputs = inputs_of(8)
    expected = unbroken(inputs)
    for place in range(len(content) - 1, -1, -2):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        journal.place(target).write_bytes(damaged)
        done, note, rows = run(target, inputs)
        assert rows == expected, place
        assert done == [0, 0, 0, 6][int((ends <= place).sum())]
        # Without its line end the last line is as one that was cut off, of which nothing needs to be said.
        assert "damaged" in note or (place == len(content) - 1 and not note)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_changes_between_the_runs_the_rows_are_those_of_a_fresh_one(target, seed):
    draw = random.Random(seed)
    inputs = inputs_of(draw.randrange(1, 16))
    for _ in range(3):
        run(target, inputs, stop=draw.randrange(4))
        place = draw.randrange(len(inputs) + 1)
        match draw.randrange(5):
            case 0 if place < len(inputs):
                inputs[place] = inputs[place]._replace(stamp="changed")
            case 1:
                inputs.insert(place, Input(f"new-{draw.random()}", Place(Path("a")), ""))
            case 2:
                del inputs[place:]
            case 3:
                inputs += inputs_of(place + 1)[place:]
        inputs = inputs or inputs_of(1)
    assert run(target, inputs)[2] == unbroken(inputs)


@pytest.mark.parametrize("change", ["name", "stamp", "refusal"])
def test_rows_are_kept_as_far_as_the_inputs_are_the_same(target, change):
    inputs = inputs_of(8)
    run(target, inputs, stop=9)
    inputs[4] = inputs[4]._replace(**{change: "other"})
    run(target, inputs, stop=0)
    assert len(journal.place(target).read_bytes().splitlines()) == 2, "what was dropped is gone from the disk"
    run(target, inputs_of(8), stop=9)
    done, note, rows = run(target, inputs)
    assert (done, rows) == (3, unbroken(inputs))
    assert "3 rows are kept" in note


def test_a_file_that_is_gone_and_one_that_is_new(target):
    run(target, inputs_of(8), stop=9)
    assert run(target, inputs_of(6))[::2] == (6, unbroken(inputs_of(6)))
    run(target, inputs_of(8), stop=9)
    # The last lot had two inputs and would have three now.
    assert run(target, inputs_of(9))[::2] == (6, unbroken(inputs_of(9)))


def test_nothing_is_scored_again_when_only_the_table_was_not_written(target):
    inputs = inputs_of(8)
    run(target, inputs, stop=3)
    done, note, rows = run(target, inputs)
    assert (done, note, rows) == (8, "", unbroken(inputs))


def test_other_settings_start_over_and_are_named(target):
    run(target, inputs_of(8), stop=2)
    assert journal.settings(target) == json.loads(json.dumps(SETTINGS))
    done, note, rows = run(target, inputs_of(8), settings=SETTINGS | {"batch": 8, "provider": "CPU"})
    assert (done, rows) == (0, unbroken(inputs_of(8)))
    assert note == "the unfinished run was made with another batch, provider: starting over"
    assert journal.settings(target) == {}


def test_an_unfinished_journal_is_private_and_tells_no_name_that_is_not_shown(target):
    inputs = [one._replace(name=f"Doe^Jane {one.name}") for one in inputs_of(6)]
    hidden = {one.name: f"scan-{number}" for number, one in enumerate(inputs)}
    run(target, inputs, stop=2, shown=hidden.__getitem__)
    path = journal.place(target)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"Jane" not in path.read_bytes()
    done, note, rows = run(target, inputs, shown=hidden.__getitem__)
    assert (done, note) == (6, "")
    assert [row.path for row in rows] == list(hidden.values())


def test_a_run_that_scored_nothing_leaves_nothing_but_what_was_there(target):
    run(target, inputs_of(3), stop=0)
    assert list(target.parent.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), journal.open(target, SETTINGS):
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    run(target, inputs_of(8), stop=2)
    before = journal.place(target).read_bytes()
    with pytest.raises(KeyboardInterrupt), journal.open(target, {"batch": 1}):
        raise KeyboardInterrupt
    assert journal.place(target).read_bytes() == before


def test_a_second_writer_of_the_table_is_refused_but_not_of_another(target):
    with journal.open(target, SETTINGS) as kept:
        kept.resume(iter([]))
        with pytest.raises(UsageError, match=r"another damcli is writing this file\n.*scores\.csv"):
            run(target, inputs_of(3))
        with journal.open(target.with_name("other.csv"), SETTINGS):
            pass


def test_a_full_disk_is_said_and_costs_only_the_lot_that_had_no_room(target, whole):
    content, ends = whole
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    inputs = inputs_of(8)
    journal.place(target).unlink()
    try:
        # The write of the last lot is cut off in its middle.
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(ends[2] + len(content)) // 2, limits[1]))
        with pytest.raises(MachineError, match="no space is left"):
            run(target, inputs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(journal.place(target).read_bytes()) == (ends[2] + len(content)) // 2
    assert run(target, inputs) == (6, "", unbroken(inputs))


def test_rows_that_were_damaged_since_are_never_left_out_in_silence(target):
    with journal.open(target, SETTINGS) as kept:
        inputs = inputs_of(6)
        kept.resume(iter(inputs))
        kept.append(inputs[:3], list(lot_of(inputs[:3])))
        kept.append(inputs[3:], list(lot_of(inputs[3:])))
        with kept.path.open("r+b") as file:
            file.seek(-9, os.SEEK_END)
            file.write(b"#")
        with pytest.raises(DataError, match="damaged"):
            list(kept.rows())


def test_a_lot_reaches_the_disk_before_the_journal_is_left(target, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor, fsync=os.fsync: synced.append(fsync(descriptor)))
    run(target, inputs_of(200), stop=60)
    assert 1 <= len(synced) < 60


def test_memory_is_flat_however_many_rows(target):
    scores = np.full(14, 1 / 3, np.float32)
    inputs = [Input(f"folder/{number:06d}.dcm", Place(Path("a")), "1") for number in range(5_000)]
    with journal.open(target, SETTINGS) as kept:
        kept.resume(iter(inputs))
        for start in range(0, len(inputs), 50):
            lot = inputs[start : start + 50]
            kept.append(lot, [Row(one.name, "ok", "", scores) for one in lot])
    tracemalloc.start()
    try:
        with journal.open(target, SETTINGS) as kept:
            assert list(kept.resume(iter(inputs))) == []
            assert sum(row.scores is not None for row in kept.rows()) == kept.done == 5_000
        assert tracemalloc.get_traced_memory()[1] < 500_000 < journal.place(target).stat().st_size
    finally:
        tracemalloc.stop()


PREDICT = """
import sys, time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
spec = spec_from_file_location("helper", sys.argv[1])
spec.loader.exec_module(helper := module_from_spec(spec))
score = helper.lot_of
def slowly(lot):
    print("scoring", flush=True)
    time.sleep(60 if lot[-1].name == "a/239.dcm" else 0.001)
    return score(lot)
helper.lot_of = slowly
helper.run(Path(sys.argv[2]), helper.inputs_of(240))
"""


@pytest.mark.distributed
def test_a_run_killed_again_and_again_comes_to_the_end(target):
    inputs = inputs_of(240)
    draw = random.Random(0)
    kept = 0
    for _ in range(3):
        command = [sys.executable, "-c", PREDICT, __file__, str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            lots = draw.randrange(3, 15)
            assert [process.stdout.readline() for _ in range(lots)] == ["scoring\n"] * lots
            time.sleep(draw.uniform(0, 0.003))
        finally:
            process.kill()
            process.communicate()
        with journal.open(target, SETTINGS) as left:
            rest = list(left.resume(iter(inputs)))
            assert kept + SIZE * (lots - 1) <= left.done == len(inputs) - len(rest) < len(inputs)
            kept = left.done
    assert run(target, inputs) == (kept, "", unbroken(inputs))
