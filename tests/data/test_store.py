"""A finished dataset: what it gives back, and what is refused."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.data import workers, writer
from damcli.data.images import Contract
from damcli.data.labels import Policy
from damcli.data.sources import Source
from damcli.data.store import UNFINISHED, Dataset
from damcli.errors import DataError, UsageError

LABELS = [1.0, 0.0, -1.0, None, 1.0, 0.0]
SPLITS = ["train", "train", "train", "train", "valid", "valid"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six 8 x 8 scans in shards of four, one of them grey level 40 * number."""
    for number in range(6):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / f"{number}.png")
    scans = pl.DataFrame(
        {
            "id": [f"{number}.png" for number in range(6)],
            "path": [str(tmp_path / f"{number}.png") for number in range(6)],
            "patient": ["a", "a", "b", None, "c", "d"],
            "study": pl.Series([None] * 6, dtype=pl.String),
            "view": pl.Series([None] * 6, dtype=pl.String),
            "split": SPLITS,
            "label:sick": LABELS,
            "label:well": LABELS[::-1],
            "age": [50.0, None, 60, 70, 80, 90],
        }
    )
    policies = {"sick": Policy(uncertain=0.75, blank="missing"), "well": Policy(uncertain="ignore", blank="negative")}
    source = Source("table", tmp_path, scans, ["sick", "well"], policies, ["a note"])
    contract = Contract(size=8, channels=1)
    path = tmp_path / "made"
    for _ in writer.write(path, source, contract, lambda paths: workers.decode(paths, contract, 0), shard_scans=4):
        pass
    return path


def test_what_was_put_in_comes_out(dataset: Path) -> None:
    made = Dataset.open(dataset)
    train, valid = made.rows("train"), made.rows("valid")
    assert (train.tolist(), valid.tolist()) == ([0, 1, 2, 3], [4, 5])
    np.testing.assert_array_equal(made.targets(train)[:, 0], np.array([1, 0, 0.75, np.nan], np.float32))
    np.testing.assert_array_equal(made.truth(train), [[1, 0], [0, 1], [np.nan, 0], [np.nan, np.nan]])
    np.testing.assert_array_equal(made.targets(valid)[:, 1], [0, 1])
    assert made.ids(valid) == ["4.png", "5.png"]
    assert made.patients(train) == ["a", "a", "b", ""]
    rows = np.array([5, 0, 3, 4])
    np.testing.assert_array_equal(made.read(rows), np.broadcast_to(40 * rows[:, None, None], (4, 8, 8)))


def test_the_manifest_and_its_description(dataset: Path) -> None:
    made = Dataset.open(dataset)
    assert made.manifest.columns == [
        "id", "path", "patient", "study", "view", "split", "fold", "label:sick", "label:well", "target:sick",
        "target:well", "age", "remark", "shard", "row",
    ]  # fmt: skip
    assert made.manifest["shard"].to_list() == [0, 0, 0, 0, 1, 1]
    assert made.manifest["row"].to_list() == [0, 1, 2, 3, 0, 1]
    info = made.info
    assert info.splits == {"train": 4, "valid": 2}
    assert list(info.counts["train"]["sick"].model_dump().values()) == [1, 1, 1, 1]
    assert list(info.counts["train"]["well"].model_dump().values()) == [1, 2, 1, 0]
    assert [shard.scans for shard in info.shards] == [4, 2]
    assert (info.contract.size, info.rejected, info.notes) == (8, 0, ("a note",))
    assert (dataset / "rejected.csv").read_text() == "path,reason\n"
    assert sorted(file.name for file in dataset.iterdir()) == [
        "dataset.json", "images-00000.npy", "images-00001.npy", "manifest.parquet", "rejected.csv",
    ]  # fmt: skip


def test_a_split_that_is_not_there(dataset: Path) -> None:
    with pytest.raises(UsageError, match="train, valid"):
        Dataset.open(dataset).rows("test")


def refused(path: Path, *said: str) -> None:
    with pytest.raises(DataError) as caught:
        Dataset.open(path)
    assert caught.value.fix or "no dataset" in str(caught.value)
    for text in said:
        assert text in str(caught.value)


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    refused(tmp_path, "no dataset")
    refused(tmp_path / "absent", "no dataset")
    (tmp_path / UNFINISHED).write_text("{}")
    refused(tmp_path, "not finished", "run the same")


def test_damaged_datasets(dataset: Path) -> None:
    manifest, about = dataset / "manifest.parquet", dataset / "dataset.json"
    whole, text = manifest.read_bytes(), about.read_text()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    manifest.write_bytes(flipped)
    refused(dataset, "manifest is damaged")
    manifest.unlink()
    refused(dataset, "manifest is missing")
    manifest.write_bytes(whole)

    about.write_text(text[:-20])
    with pytest.raises(DataError, match="damaged"):
        Dataset.open(dataset)
    about.write_text(json.dumps({**json.loads(text), "schema_version": 99}))
    refused(dataset, "schema 99", "schema 1")
    about.write_text(json.dumps({**json.loads(text), "colour": "red"}))
    refused(dataset, "damaged at colour")
    about.write_text("[]")
    refused(dataset, "schema None")
    about.write_text(text)

    shard = dataset / "images-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(dataset, "images-00001.npy")
    shard.unlink()
    refused(dataset, "shard of the dataset is missing")
