"""Image shards: written whole, read by pread."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from damcli.data import shards
from damcli.errors import DataError

SIZES = (5, 3, 1)


def make(folder: Path, shape: tuple[int, ...]) -> tuple[shards.Reader, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (sum(SIZES), *shape), np.uint8)
    stops = np.cumsum(SIZES)
    for number, (stop, size) in enumerate(zip(stops, SIZES, strict=True)):
        with shards.creating(folder / shards.name(number), shape) as shard:
            for image in images[stop - size : stop]:
                shard.append(image)
    return shards.Reader([folder / shards.name(n) for n in range(3)], SIZES, shape), images


SHARDS = np.repeat(np.arange(3), SIZES)
ROWS = np.concatenate([np.arange(size) for size in SIZES])


@pytest.mark.parametrize("shape", [(4, 4), (6, 6, 3)])
def test_any_rows_in_any_order(tmp_path: Path, shape: tuple[int, ...]) -> None:
    reader, images = make(tmp_path, shape)
    rng = np.random.default_rng(1)
    for rows in (
        np.arange(9),
        np.arange(9)[::-1],
        np.array([4, 5]),
        np.array([8]),
        np.array([], np.int64),
        rng.integers(0, 9, 200),
    ):
        np.testing.assert_array_equal(reader.read(SHARDS[rows], ROWS[rows]), images[rows])
    out = np.empty((9, *shape), np.uint8)
    assert reader.read(SHARDS, ROWS, out) is out
    np.testing.assert_array_equal(out, images)


def test_shards_are_plain_npy_files(tmp_path: Path) -> None:
    _, images = make(tmp_path, (4, 4))
    loaded = [np.load(tmp_path / shards.name(n)) for n in range(3)]
    assert [len(part) for part in loaded] == list(SIZES)
    np.testing.assert_array_equal(np.concatenate(loaded), images)
    assert all(part.flags.c_contiguous for part in loaded)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    reader, images = make(tmp_path, (4, 4))

    def check(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 9, 40)
        return bool((reader.read(SHARDS[rows], ROWS[rows]) == images[rows]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(100)))


def test_an_error_while_writing_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), shards.creating(tmp_path / "a.npy", (2, 2)) as shard:
        shard.append(np.zeros((2, 2), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    reader, _ = make(tmp_path, (4, 4))
    for out in (np.empty((8, 4, 4), np.uint8), np.empty((9, 4, 4), np.int8), np.empty((4, 4, 9), np.uint8).T):
        with pytest.raises(ValueError, match="out must be"):
            reader.read(SHARDS, ROWS, out)


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    reader, _ = make(tmp_path, (4, 4))
    file = tmp_path / shards.name(1)
    whole = file.read_bytes()
    files = [tmp_path / shards.name(n) for n in range(3)]

    def refused(what: str) -> None:
        with pytest.raises(DataError, match=what):
            shards.Reader(files, SIZES, (4, 4))

    file.write_bytes(whole[:-1])
    refused("bytes")
    file.write_bytes(b"not a shard")
    refused(r"no \.npy")
    file.write_bytes(b"")
    refused(r"no \.npy")
    np.save(file, np.zeros((3, 4, 4), np.float32))
    refused("float32")
    np.save(file, np.zeros((2, 4, 4), np.uint8))
    refused(r"\(2, 4, 4\)")
    np.save(file, np.asfortranarray(np.zeros((3, 4, 4), np.uint8)))
    refused("uint8")
    file.unlink()
    refused("missing")

    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="cut short"):
        reader.read(SHARDS, ROWS)
