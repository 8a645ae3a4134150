"""The loader: in order, read ahead within bounds, errors at their turn, no thread left behind."""

import threading
import time

import numpy as np
import pytest
import torch

from damcli.data import loader
from damcli.data.store import Dataset
from damcli.errors import DataError


@pytest.fixture
def dataset(toy):
    return Dataset.open(toy)


def test_batches_come_in_order_and_hold_what_the_dataset_holds(dataset):
    wanted = [np.array(rows) for rows in ([5, 3, 3], [0], list(range(40, 60)), [239, 1])]
    found = list(loader.batches(dataset, wanted))
    assert [batch.rows.tolist() for batch in found] == [rows.tolist() for rows in wanted]
    for batch, rows in zip(found, wanted, strict=True):
        assert batch.images.dtype == torch.uint8
        assert batch.targets.dtype == torch.float32
        np.testing.assert_array_equal(batch.images.numpy(), dataset.read(rows))
        np.testing.assert_array_equal(batch.targets.numpy(), dataset.targets(rows))


def test_it_reads_ahead_by_no_more_than_it_is_told(dataset):
    drawn = []

    def indices():
        for number in range(10):
            drawn.append(number)
            yield np.array([number])

    batches = loader.batches(dataset, indices(), prefetch=3)
    next(batches)
    assert drawn == [0, 1, 2, 3]
    next(batches)
    assert drawn == [0, 1, 2, 3, 4]
    batches.close()


def test_a_batch_already_handed_out_does_not_change(dataset):
    batches = loader.batches(dataset, [np.arange(8) + start for start in range(0, 80, 8)])
    first = next(batches)
    before = first.images.clone()
    list(batches)
    assert torch.equal(first.images, before)


def test_what_reading_raises_comes_at_its_batch_and_ends_the_threads(make_toy, tmp_path):
    broken = Dataset.open(make_toy(tmp_path / "dataset", scans=24))
    [shard] = broken.path.glob("images-*.npy")
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 100)  # behind the dataset's back, after it was opened and checked
    before = {thread for thread in threading.enumerate() if thread.name.startswith("loader")}
    batches = loader.batches(broken, [np.array([0]), np.array([1]), np.array([23]), np.array([2])])
    assert [next(batches).rows.tolist() for _ in range(2)] == [[0], [1]]
    with pytest.raises(DataError, match="cut short"):
        next(batches)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("loader")} == before


def test_closing_the_generator_ends_its_threads(dataset):
    batches = loader.batches(dataset, [np.array([row]) for row in range(100)], prefetch=4)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("loader") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a loader thread is still there"
        time.sleep(0.01)
