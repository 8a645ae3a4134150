"""The pipeline between decoding and the table: what it holds, when it hands on, what it does where memory runs out."""

import dataclasses
import threading

import numpy as np
import pytest
from PIL import Image

from damcli.bundle.engines import OutOfMemory
from damcli.bundle.pipeline import Pipeline
from damcli.bundle.runtime import Model
from damcli.data.archives import Place
from damcli.data.inputs import Input
from damcli.errors import MachineError


@pytest.fixture
def make_inputs(tmp_path):
    """Returns `make(number)`: as many different pictures, as they come out of a compressed tar."""

    def make(number):
        inputs = []
        for n in range(number):
            file = tmp_path / f"{n}.png"
            Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 20), dtype=np.uint8)).save(file)
            inputs.append(Input(file.name, Place(tmp_path / "scans.tgz", content=file.read_bytes()), "1"))
        return inputs

    return make


class Device:
    """An engine that scores a scan by its mean; at most `most` at a time."""

    def __init__(self, most=100):
        self.most, self.sizes = most, []

    def run(self, inputs, outputs):
        images = inputs["images"]
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise OutOfMemory("out of memory")
        return [np.repeat(images.mean((1, 2, 3))[:, None] / 255, 2, axis=1).astype(np.float32)]


@pytest.fixture
def on(model_file):
    """Returns `on(*engines)`: a model on these."""
    return lambda *engines: dataclasses.replace(Model.open(model_file, "cpu", threads=1), engines=engines)


def flat(lots):
    return [(row.path, row.scores.tolist()) for lot in lots for row in lot.rows]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_bytes_of_a_compressed_archive_are_not_held_until_the_row(on, make_inputs, workers):
    inputs = make_inputs(7)
    lots = list(Pipeline(on(Device()), workers=workers, batch=3).rows(inputs))
    assert [len(lot.inputs) for lot in lots] == [3, 3, 1]
    got = [one for lot in lots for one in lot.inputs]
    assert [(one.name, one.place.path, one.stamp) for one in got] == [(i.name, i.place.path, i.stamp) for i in inputs]
    assert [one.place.content for one in got] == [None] * 7
    assert {row.status for lot in lots for row in lot.rows} == {"ok"}


def test_what_is_scored_is_handed_on_while_the_next_scans_take_their_time(on, make_inputs):
    taken, there = [], threading.Event()

    def slowly():
        for one in make_inputs(40):
            taken.append(one)
            there.wait(0.2)
            yield one

    pipeline = Pipeline(on(Device(), Device()), workers=0, batch=2, streams=2)
    lots = pipeline.rows(slowly())
    assert len(next(lots).rows) == 2
    # All that may be out: two lots for each thread, and the next one.
    assert len(taken) < 2 * (2 * pipeline.threads + 1)
    there.set()
    assert sum(len(lot.rows) for lot in lots) == 38


def test_where_memory_runs_out_the_rows_are_the_same_and_later_lots_are_scored_in_pieces(on, make_inputs):
    inputs = make_inputs(20)
    expected = flat(Pipeline(on(Device()), workers=0, batch=8).rows(inputs))
    device = Device(most=3)
    pipeline = Pipeline(on(device, device), workers=0, batch=8, streams=2)
    assert flat(pipeline.rows(inputs)) == expected
    assert pipeline.most == 2
    assert max(device.sizes[-4:]) <= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_any_lot_ends_the_run_however_many_are_out(on, make_inputs, workers):
    pipeline = Pipeline(on(Device(most=0)), workers=workers, batch=1, streams=3)
    with pytest.raises(MachineError, match="even one scan at a time"):
        list(pipeline.rows(make_inputs(40)))
