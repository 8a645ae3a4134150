"""Benchmark sets in small, as their authors pack them (FORMATS section 9): pixels, classes, shares, hostile files."""

import pickle
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.commands.prepare import prepare
from damcli.commands.prepare import read as prepare_read
from damcli.data import splits
from damcli.data.sources import benchmark
from damcli.data.store import Dataset
from damcli.errors import DataError, UsageError

RNG = np.random.default_rng(0)


def draw(number: int, side: int = 32) -> np.ndarray:
    """Images (N, S, S, 3) in which no axis can be taken for another."""
    return RNG.integers(0, 256, (number, side, side, 3), dtype=np.uint8)


def python_2_pickle(data: np.ndarray, labels: list[int], key: bytes) -> bytes:
    """A CIFAR batch as Python 2 left it: protocol 2, byte strings, NumPy under its old name. Opcode by opcode.

    Python 3 writes none of this itself: its byte strings and its NumPy have other opcodes and names.
    """

    def old_str(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    raw = data.tobytes()
    minus_one = b"J\xff\xff\xff\xff"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + old_str(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + old_str(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + old_str(b"|") + b"NNN" + minus_one + minus_one + b"K\0tb"
    shape = b"M" + len(data).to_bytes(2, "little") + b"M" + data.shape[1].to_bytes(2, "little") + b"\x86"
    array = empty + b"(K\1" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(" + old_str(b"data") + array + old_str(key) + b"](" + numbers + b"eu."


def cifar_python(folder: Path, classes: int = 10, per_batch: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write CIFAR-10 or -100 in Python's form; return images and labels by split."""
    folder.mkdir(parents=True)
    made: dict[str, list] = {"train": [], "test": []}
    if classes == 10:
        named = [(f"data_batch_{n}", "train") for n in range(1, 6)] + [("test_batch", "test")]
        (folder / "batches.meta").write_bytes(b"")
    else:
        named = [("train", "train"), ("test", "test")]
        (folder / "meta").write_bytes(b"")
    for name, split in named:
        images, labels = draw(per_batch), RNG.integers(0, classes, per_batch)
        data = images.transpose(0, 3, 1, 2).reshape(per_batch, -1)
        key = b"labels" if classes == 10 else b"fine_labels"
        (folder / name).write_bytes(python_2_pickle(data, labels.tolist(), key))
        made[split].append((images, labels))
    return {
        split: (np.concatenate([i for i, _ in parts]), np.concatenate([x for _, x in parts]))
        for split, parts in made.items()
    }


def cifar_binary(folder: Path, classes: int = 10) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True)
    made = {}
    for split, name in (("train", "data_batch_{}.bin"), ("test", "test_batch.bin")):
        parts = []
        for number in range(1, 6) if split == "train" and classes == 10 else (0,):
            images, labels = draw(12), RNG.integers(0, classes, 12)
            planes = images.transpose(0, 3, 1, 2).reshape(12, -1)
            fine = labels[:, None].astype(np.uint8)
            # The coarse label is put where it would be taken for a fine one.
            record = np.hstack([fine, planes] if classes == 10 else [99 - fine, fine, planes])
            file = name.format(number) if classes == 10 else f"{split}.bin"
            (folder / file).write_bytes(record.tobytes())
            parts.append((images, labels))
        made[split] = (np.concatenate([i for i, _ in parts]), np.concatenate([x for _, x in parts]))
    return made


def stl10(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True)
    made = {}
    for split, number in (("train", 10), ("test", 6)):
        images, labels = draw(number, 96), RNG.integers(0, 10, number)
        images.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # planes, each column by column
        (labels + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
        made[split] = (images, labels)
    (folder / "unlabeled_X.bin").write_bytes(b"")
    return made


def medmnist(file: Path, shape=(28, 28), labels=None, sizes=(30, 8, 12)) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    made, arrays = {}, {}
    for (name, split), number in zip((("train", "train"), ("val", "valid"), ("test", "test")), sizes, strict=True):
        images = RNG.integers(0, 256, (number, *shape), dtype=np.uint8)
        wanted = RNG.integers(0, 2, (number, 1)) if labels is None else labels(number)
        arrays |= {f"{name}_images": images, f"{name}_labels": wanted.astype(np.uint8)}
        made[split] = (images, wanted)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)
    return made


def prepared(path: Path, output: Path, allow_leaks: bool = False, **settings) -> Dataset:
    source = prepare_read("benchmark", path, **settings)
    for _ in prepare(source, output, workers=0, allow_leaks=allow_leaks):
        pass
    return Dataset.open(output)


MAKERS = {
    "cifar10": (lambda f: cifar_python(f / "cifar-10-batches-py"), 5),
    "cifar100": (lambda f: cifar_python(f / "cifar-100-python", classes=100), 50),
    "cifar10-binary": (lambda f: cifar_binary(f / "cifar-10-batches-bin"), 5),
    "cifar100-binary": (lambda f: cifar_binary(f / "cifar-100-binary", classes=100), 50),
    "stl10": (lambda f: stl10(f / "stl10_binary"), 5),
}


@pytest.mark.parametrize("one_level_down", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
def test_pixels_are_exact_and_the_second_half_of_the_classes_is_positive(tmp_path, kind, one_level_down):
    make, half = MAKERS[kind]
    made = make(tmp_path / "download")
    [folder] = (tmp_path / "download").iterdir()
    dataset = prepared(folder.parent if one_level_down else folder, tmp_path / "dataset")
    assert dataset.info.source == f"benchmark:{kind.split('-')[0]}"
    assert dataset.info.findings == ("positive",)
    assert dataset.info.contract.channels == 3
    assert any("images without labels" in note for note in dataset.info.notes) == (kind == "stl10")
    for split, (images, labels) in made.items():
        rows = dataset.rows(split)
        assert np.array_equal(dataset.read(rows), images)
        assert dataset.truth(rows)[:, 0].tolist() == (labels >= half).tolist()
        assert dataset.manifest["class"].gather(rows).to_list() == labels.tolist()
        assert dataset.ids(rows)[:2] == [f"{split}/000000", f"{split}/000001"]
    assert any("no patient is known" in note for note in dataset.info.notes)


@pytest.mark.parametrize(("shape", "channels"), [((28, 28), 1), ((28, 28, 3), 3), ((64, 64), 1)])
def test_medmnist_keeps_its_splits_and_its_two_classes(tmp_path, shape, channels):
    name = "pneumoniamnist" if shape[0] == 28 else "pneumoniamnist_64"
    made = medmnist(tmp_path / f"{name}.npz", shape)
    dataset = prepared(tmp_path / f"{name}.npz", tmp_path / "dataset")
    assert dataset.info.source == f"benchmark:{name}"
    assert dataset.info.findings == ("pneumonia",)
    assert dataset.info.contract.channels == channels
    for split, (images, labels) in made.items():
        rows = dataset.rows(split)
        assert np.array_equal(dataset.read(rows), images)
        assert dataset.truth(rows)[:, 0].tolist() == labels[:, 0].tolist()


def test_medmnist_of_several_labels_has_as_many_findings(tmp_path):
    medmnist(tmp_path / "chestmnist.npz", labels=lambda n: RNG.integers(0, 2, (n, 14)))
    source = benchmark.read(tmp_path)
    assert len(source.findings) == 14
    assert source.findings[0] == "atelectasis"
    with pytest.raises(UsageError, match="14 findings has no one share"):
        benchmark.read(tmp_path, imratio=0.1)


def test_five_classes_are_divided_after_the_third(tmp_path):
    made = medmnist(tmp_path / "retinamnist.npz", (28, 28, 3), labels=lambda n: np.arange(n)[:, None] % 5)
    source = benchmark.read(tmp_path)
    assert (
        source.scans.filter(pl.col("split") == "train")["label:positive"].to_list()
        == (made["train"][1][:, 0] >= 3).astype(float).tolist()
    )
    assert any("classes 0 to 2 are negative, 3 to 4 positive" in note for note in source.notes)


def test_real_medmnist(test_data, tmp_path):
    file = test_data / "pneumoniamnist" / "pneumoniamnist.npz"
    # At 28 pixels, eight of its training images occur in its validation or test set too.
    with pytest.raises(DataError, match="8 images are in two splits, pixel for pixel"):
        prepared(file, tmp_path / "dataset")
    dataset = prepared(file, tmp_path / "dataset", allow_leaks=True)
    with np.load(file) as arrays:
        for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
            rows = dataset.rows(split)
            assert np.array_equal(dataset.read(rows), arrays[f"{name}_images"])
            assert dataset.truth(rows)[:, 0].tolist() == arrays[f"{name}_labels"][:, 0].tolist()


def write_photograph(path: Path, side: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(1, side)[0]).save(path)


@pytest.mark.parametrize("layout", ["kaggle", "kaggle-flat", "microsoft"])
def test_photographs_of_cats_and_dogs(tmp_path, layout):
    folder = tmp_path / "download"
    for number in range(20):
        for animal in ("cat", "dog"):
            place = {
                "kaggle": f"train/{animal}.{number}.jpg",
                "kaggle-flat": f"{animal}.{number}.jpg",
                "microsoft": f"{animal.capitalize()}/{number}.jpg",
            }[layout]
            write_photograph(folder / place)
    (folder / "test").mkdir()
    write_photograph(folder / "test" / "1.jpg")
    if layout == "microsoft":
        (folder / "Cat" / "Thumbs.db").write_bytes(b"\0" * 100)
        (folder / "Cat" / "7.jpg").write_bytes(b"")
    dataset = prepared(folder, tmp_path / "dataset")
    assert dataset.info.findings == ("dog",)
    assert dataset.info.contract.size == 50
    rejected = pl.read_csv(tmp_path / "dataset" / "rejected.csv")["path"].to_list()
    assert rejected == (["Cat/7.jpg"] if layout == "microsoft" else [])
    assert dataset.info.splits["train"] + dataset.info.splits["test"] == 40 - len(rejected)
    tested = dataset.truth(dataset.rows("test"))[:, 0]
    assert (tested == 1).sum() == 4  # a fifth of each class
    names = dataset.manifest["id"].to_list()
    assert all(("dog" in name.lower()) == (label == 1)
               for name, label in zip(names, dataset.manifest["label:dog"].to_list(), strict=True))  # fmt: skip
    assert any("without labels are left out" in note for note in dataset.info.notes)
    again = prepare_read("benchmark", folder, seed=5).scans
    assert dataset.ids(dataset.rows("test")) == [
        name for name in again.filter(pl.col("split") == "test")["id"].to_list() if name not in rejected
    ]


def test_the_arrays_of_cats_and_dogs(tmp_path):
    images = np.zeros((5040, 4, 4, 3), np.uint8)
    images[:] = np.arange(5040)[:, None, None, None] % 251
    np.save(tmp_path / "cat_vs_dog_data.npy", images)
    np.save(tmp_path / "cat_vs_dog_label.npy", np.arange(5040) % 2)
    source = benchmark.read(tmp_path)
    assert source.name == "benchmark:cats-vs-dogs"
    counted = dict(source.scans["split"].value_counts().iter_rows())
    assert counted == {"train": 40, "test": 5000}
    assert all(np.array_equal(got, images[k]) for k, got in enumerate(islice(source.pixels(0), 45)))
    assert np.array_equal(next(source.pixels(43)), images[43])


@pytest.mark.parametrize("seed", [0, 1])
def test_imratio_thins_the_positives_of_train_and_nothing_else(tmp_path, seed):
    made = cifar_python(tmp_path / "cifar-10-batches-py", per_batch=60)
    whole = prepared(tmp_path, tmp_path / "whole")
    dataset = prepared(tmp_path, tmp_path / "thin", imratio=0.1, seed=seed)
    labels = made["train"][1] >= 5
    negatives = int((~labels).sum())
    truth = dataset.truth(dataset.rows("train"))[:, 0]
    assert (truth == 0).sum() == negatives
    assert (truth == 1).sum() == negatives // 9
    assert dataset.ids(dataset.rows("test")) == whole.ids(whole.rows("test"))
    # What stayed has its own pixels still.
    place = {name: row for row, name in enumerate(whole.manifest["id"].to_list())}
    ids = dataset.manifest["id"].to_list()
    rows = np.array([place[name] for name in ids])
    assert np.array_equal(dataset.read(np.arange(len(ids))), whole.read(rows))
    other = prepare_read("benchmark", tmp_path, imratio=0.1, seed=seed + 7).scans["id"].to_list()
    assert other != ids
    assert any(f"(seed {seed}); the test set is untouched" in note for note in dataset.info.notes)


@pytest.mark.parametrize("imratio", [0.01, 0.1, 0.3])
def test_imbalanced_is_as_near_as_can_be_from_below_and_its_own_generator(imratio):
    positive = np.arange(1000) % 2 == 0
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    kept = splits.imbalanced(positive, imratio, seed=3)
    assert np.random.get_state()[1].tolist() == before
    assert kept[~positive].all()
    left = int((kept & positive).sum())
    assert left / (left + 500) <= imratio + 1e-12
    assert (left + 1) / (left + 501) > imratio
    assert np.array_equal(kept, splits.imbalanced(positive, imratio, seed=3))


@pytest.mark.parametrize(("imratio", "words"), [(0.0, r"lie in \(0, 1\), got 0"), (0.9, "there is, 0.5, got 0.9")])
def test_a_share_that_cannot_be_is_refused(tmp_path, imratio, words):
    with pytest.raises(ValueError, match=words):
        splits.imbalanced(np.arange(10) % 2 == 0, imratio, 0)


def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path, monkeypatch):
    from damcli.data import writer

    cifar_python(tmp_path / "cifar-10-batches-py")
    monkeypatch.setattr("damcli.data.shards.SHARD_SCANS", 16)

    def write(output: Path, stop: int | None = None) -> None:
        source = prepare_read("benchmark", tmp_path, imratio=0.2)
        from damcli.data.images import Contract

        contract = Contract(size=32, channels=3)
        steps = writer.write(output, source, contract, lambda paths: iter(()), shard_scans=16)
        for number, _ in enumerate(steps):
            if number == stop:
                steps.close()
                return

    write(tmp_path / "whole")
    write(tmp_path / "broken", stop=40)
    assert (tmp_path / "broken" / ".unfinished.json").exists()
    write(tmp_path / "broken")
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "broken" / file.name).read_bytes(), file.name


class Evil:
    def __reduce__(self):
        return (eval, ("__import__('os').environ.setdefault('DAMCLI_WAS_HERE', '1')",))


@pytest.mark.parametrize("inside", ["alone", "beside the data"])
def test_a_pickle_that_wants_to_run_something_is_refused_by_name_and_unrun(tmp_path, inside, monkeypatch):
    import os

    folder = tmp_path / "cifar-10-batches-py"
    cifar_python(folder)
    data = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1], b"x": Evil()}
    (folder / "data_batch_3").write_bytes(pickle.dumps(Evil() if inside == "alone" else data, 4))
    with pytest.raises(
        DataError, match=r"builtin.*\.eval, which no CIFAR file needs: nothing of it was run"
    ) as refusal:
        benchmark.read(tmp_path)
    assert "data_batch_3" in str(refusal.value)
    assert "DAMCLI_WAS_HERE" not in os.environ


def damage(folder: Path, what: str) -> None:
    if what == "cut pickle":
        file = folder / "data_batch_2"
        file.write_bytes(file.read_bytes()[:-500])
    elif what == "other data":
        (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": [1], b"labels": [1]}, 4))
    elif what == "labels short":
        (folder / "data_batch_2").write_bytes(python_2_pickle(np.zeros((3, 3072), np.uint8), [1, 2], b"labels"))
    elif what == "other key":
        (folder / "data_batch_2").write_bytes(python_2_pickle(np.zeros((1, 3072), np.uint8), [1], b"fine_labels"))
    elif what == "label too large":
        (folder / "data_batch_2").write_bytes(python_2_pickle(np.zeros((1, 3072), np.uint8), [10], b"labels"))
    elif what == "missing":
        (folder / "test_batch").unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("cut pickle", "no CIFAR file"),
        ("other data", "no uint8 data"),
        ("labels short", "one number per image"),
        ("other key", "one number per image"),
        ("label too large", "from 10 to 10, of 10 classes"),
        ("missing", "cannot be read: No such file"),
    ],
)
def test_broken_cifar_is_refused_with_its_file(tmp_path, what, words):
    folder = tmp_path / "cifar-10-batches-py"
    cifar_python(folder)
    damage(folder, what)
    with pytest.raises(DataError, match=words) as refusal:
        benchmark.read(tmp_path)
    assert ("test_batch" if what == "missing" else "data_batch_2") in str(refusal.value)


def test_files_that_are_cut_off_are_refused(tmp_path):
    cifar_binary(tmp_path / "a")
    file = tmp_path / "a" / "data_batch_4.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="no whole number of records of 3073"):
        benchmark.read(tmp_path / "a")
    stl10(tmp_path / "b")
    (tmp_path / "b" / "test_y.bin").write_bytes(b"\1\2")
    with pytest.raises(DataError, match="6 images have 2 labels"):
        benchmark.read(tmp_path / "b")


def test_npz_that_are_none_or_hold_volumes_or_objects_are_refused(tmp_path):
    medmnist(tmp_path / "organmnist3d.npz", (28, 28, 28))
    with pytest.raises(DataError, match="volumes are not images"):
        benchmark.read(tmp_path / "organmnist3d.npz")
    np.savez(tmp_path / "evil.npz", train_images=np.array([Evil()], object), train_labels=np.array([Evil()], object))
    with pytest.raises(DataError, match="cannot be read"):
        benchmark.read(tmp_path / "evil.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be read"):
        benchmark.read(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w") as archive:
        archive.writestr("nothing", b"")
    with pytest.raises(DataError, match="no MedMNIST file|cannot be read"):
        benchmark.read(tmp_path / "empty.npz")


def test_an_npz_that_ends_early_stops_with_its_name_and_writes_no_dataset(tmp_path):
    made = medmnist(tmp_path / "pneumoniamnist.npz")
    file = tmp_path / "cut.npz"
    with zipfile.ZipFile(tmp_path / "pneumoniamnist.npz") as whole, zipfile.ZipFile(file, "w") as cut:
        for name in whole.namelist():
            data = whole.read(name)
            cut.writestr(name, data[:-100] if name == "train_images.npy" else data)
    with pytest.raises(DataError, match="cut off after 29 of 30"):
        prepared(file, tmp_path / "dataset")
    assert not (tmp_path / "dataset" / "dataset.json").exists()
    assert made


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ([], DataError, "among nothing"),
        (["notes.txt"], DataError, "among notes.txt"),
        (["cifar-10-python.tar.gz"], DataError, "unpack cifar-10-python.tar.gz"),
        (["a.npz", "b.npz"], UsageError, "2 sets are equally good: a.npz, b.npz"),
    ],
)
def test_what_is_not_recognised_is_listed(tmp_path, files, error, words):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(error, match=words):
        benchmark.read(tmp_path)


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(UsageError, match="an archive"):
        benchmark.read(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(UsageError, match="no such folder"):
        benchmark.read(tmp_path / "absent")
