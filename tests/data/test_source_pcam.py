"""PatchCamelyon in small: the official HDF5 files and Kaggle's (FORMATS section 7)."""

import gzip
import resource
import tempfile
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from damcli.commands import prepare
from damcli.data import splits
from damcli.data.sources import pcam
from damcli.data.store import Dataset
from damcli.errors import DamcliError, DataError, MachineError, UsageError

PARTS = {"train": 40, "valid": 20, "test": 16}
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


def name(split: str, kind: str) -> str:
    return f"camelyonpatch_level_2_split_{split}_{kind}"


def pack(file: Path) -> None:
    """Leave only the `.gz` of a file."""
    file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


def official(folder: Path, meta: bool = True) -> Arrays:
    """The six .h5 files, half of each part positive, with the meta files; two slides a part."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    made = {}
    for split, number in PARTS.items():
        images = rng.integers(0, 256, (number, 96, 96, 3), np.uint8)
        labels = rng.permutation(np.arange(number) % 2).astype(np.uint8)
        for kind, key, array in (("x.h5", "x", images), ("y.h5", "y", labels.reshape(-1, 1, 1, 1))):
            with h5py.File(folder / name(split, kind), "w") as file:
                file.create_dataset(key, data=array, chunks=True)
        if meta:
            rows = [
                f"{n},{n * 7},{n * 5},True,{bool(label)},camelyon16_{split}_tumor_{n % 2:03}"
                for n, label in enumerate(labels)
            ]
            header = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"
            (folder / name(split, "meta.csv")).write_text("\n".join([header, *rows]) + "\n")
        made[split] = images, labels
    return made


def all_of(made: Arrays, column: int) -> np.ndarray:
    return np.concatenate([made[split][column] for split in PARTS])


def refused(folder: Path, kind: type[DamcliError], *said: str, **arguments: object) -> None:
    with pytest.raises(kind) as caught:
        list(pcam.read(folder, **arguments).pixels(0))
    for text in said:
        assert text in str(caught.value)


def test_the_real_patches(test_data: Path) -> None:
    folder = test_data / "pcam_figure_96px"
    source = pcam.read(folder)
    assert source.scans["split"].value_counts(sort=True).rows() == [("train", 40), ("valid", 12), ("test", 12)]
    assert source.scans["label:tumor"].sum() == 32
    assert source.scans["patient"].null_count() == 64
    assert any("no meta file" in note for note in source.notes)
    assert (source.size, source.channels) == (96, 3)
    with h5py.File(folder / name("train", "x.h5")) as file:
        assert np.array_equal(next(source.pixels(0)), file["x"][0])
    assert len(list(source.pixels(0))) == 64


@pytest.mark.parametrize("packed", [(), ("train_x",), ("valid_y", "test_x")])
def test_official_files_plain_and_packed(tmp_path: Path, packed: tuple[str, ...]) -> None:
    made = official(tmp_path / "pcam" if packed else tmp_path)
    for part in packed:
        pack(tmp_path / "pcam" / name(part, "h5").replace("_h5", ".h5"))
    source = pcam.read(tmp_path)
    scans = source.scans
    assert np.array_equal(scans["label:tumor"].to_numpy(), all_of(made, 1))
    assert scans["id"][0] == "train/000000"
    assert scans["id"][40] == "valid/000000"
    assert scans["split"].to_list() == [split for split, number in PARTS.items() for _ in range(number)]
    assert scans["patient"].n_unique() == 6
    assert scans["patient"][1] == "camelyon16_train_tumor_001"
    assert np.array_equal(list(source.pixels(0)), all_of(made, 0))


def test_what_is_unpacked_already_is_not_unpacked_again(tmp_path: Path) -> None:
    made = official(tmp_path)
    for split in PARTS:
        (tmp_path / name(split, "x.h5.gz")).write_bytes(b"not looked at")
    assert np.array_equal(list(pcam.read(tmp_path).pixels(0)), all_of(made, 0))


@pytest.mark.parametrize("first", [0, 1, 39, 40, 75, 76])
def test_patches_from_any_row_on(tmp_path: Path, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = official(tmp_path)
    monkeypatch.setattr(pcam, "SLICE", 7)
    rest = list(pcam.read(tmp_path).pixels(first))
    assert len(rest) == 76 - first
    assert all(np.array_equal(one, other) for one, other in zip(rest, all_of(made, 0)[first:], strict=True))


def test_meta_files_may_be_packed_and_blank_slides_are_no_slide(tmp_path: Path) -> None:
    official(tmp_path)
    file = tmp_path / name("valid", "meta.csv")
    file.write_text(file.read_text().replace("camelyon16_valid_tumor_000", ""))
    pack(file)
    source = pcam.read(tmp_path)
    valid = source.scans.filter(split="valid")["patient"]
    assert valid.null_count() == 10
    assert set(valid.drop_nulls()) == {"camelyon16_valid_tumor_001"}
    assert not any("no meta file" in note for note in source.notes)


def test_parts_that_were_exchanged_are_refused(tmp_path: Path) -> None:
    official(tmp_path)
    file = tmp_path / name("train", "meta.csv")
    lines = file.read_text().splitlines()
    first, last = (
        next(n for n, line in enumerate(lines) if value in line.split(",")[4:]) for value in ("True", "False")
    )
    swapped = [lines[{first: last, last: first}.get(n, n)] for n in range(len(lines))]
    file.write_text("\n".join(swapped) + "\n")
    refused(tmp_path, DataError, "not those of this meta file", "train_meta.csv")

    official(tmp_path)
    one, other = (tmp_path / name(split, "meta.csv") for split in ("valid", "test"))
    text = one.read_text()
    one.write_text(other.read_text())
    other.write_text(text)
    refused(tmp_path, DataError, "valid and test were exchanged", "valid_meta.csv")


@pytest.mark.parametrize("gone", ["train_y", "train_x", "test_x"])
def test_half_of_a_part_is_missing(tmp_path: Path, gone: str) -> None:
    official(tmp_path)
    (tmp_path / f"camelyonpatch_level_2_split_{gone}.h5").unlink()
    refused(tmp_path, DataError, f"of {gone.split('_')[0]}, the images")


def test_one_part_alone(tmp_path: Path) -> None:
    official(tmp_path)
    for split in ("train", "valid"):
        for kind in ("x.h5", "y.h5"):
            (tmp_path / name(split, kind)).unlink()
    assert set(pcam.read(tmp_path).scans["split"]) == {"test"}


@pytest.mark.parametrize("kind", ["x.h5", "y.h5"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_that_are_cut_off(tmp_path: Path, kind: str, packed: bool) -> None:
    official(tmp_path)
    file = tmp_path / name("train", kind)
    if packed:
        pack(file)
        file = file.with_name(file.name + ".gz")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(tmp_path, DataError, "cut off or damaged" if packed else "damaged", file.name)


def test_a_packed_file_that_was_cut_off_before_it_was_packed(tmp_path: Path) -> None:
    official(tmp_path)
    file = tmp_path / name("valid", "x.h5")
    file.write_bytes(file.read_bytes()[:-500])
    pack(file)
    refused(tmp_path, DataError, "damaged", "valid_x.h5.gz")


@pytest.mark.parametrize(
    ("kind", "key", "array", "said"),
    [
        ("x.h5", "x", np.zeros((39, 96, 96, 3), np.uint8), "(39, 96, 96, 3), not uint8 (40,"),
        ("x.h5", "x", np.zeros((40, 3, 96, 96), np.uint8), "(40, 3, 96, 96)"),
        ("x.h5", "x", np.zeros((40, 96, 96, 3), np.float32), "float32"),
        ("x.h5", "images", np.zeros((40, 96, 96, 3), np.uint8), "no HDF5 file with an array 'x'"),
        ("y.h5", "y", np.zeros((40, 2), np.uint8), "(40, 2), not (n, 1, 1, 1)"),
        ("y.h5", "y", np.full((40, 1, 1, 1), 2, np.uint8), "neither 0 nor 1"),
        ("y.h5", "y", np.zeros((0, 1, 1, 1), np.uint8), "(0, 1, 1, 1)"),
        ("y.h5", "y", np.uint8(1), "no HDF5 file with an array 'y'"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_files_that_hold_something_else(
    tmp_path: Path, kind: str, key: str, array: np.ndarray, said: str, packed: bool
) -> None:
    official(tmp_path, meta=False)
    file = tmp_path / name("train", kind)
    with h5py.File(file, "w") as made:
        made[key] = array
    if packed:
        pack(file)
    refused(tmp_path, DataError, said, file.name)


def test_an_array_that_is_a_folder_and_a_file_that_is_no_hdf5(tmp_path: Path) -> None:
    official(tmp_path)
    file = tmp_path / name("train", "x.h5")
    with h5py.File(file, "w") as made:
        made.create_group("x")
    refused(tmp_path, DataError, "no HDF5 file with an array 'x'", file.name)
    file.write_text("<html>Quota exceeded</html>")
    refused(tmp_path, DataError, "no HDF5 file", file.name)


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    official(tmp_path / "pcam")
    for split in PARTS:
        for kind in ("x.h5", "y.h5"):
            pack(tmp_path / "pcam" / name(split, kind))
    source = pcam.read(tmp_path / "pcam")
    begun = source.pixels(0)
    assert next(begun).shape == (96, 96, 3)
    assert list(place.iterdir()) == []  # already while it is read: a killed process leaves nothing either
    assert sum(1 for _ in begun) == 75
    assert list(place.iterdir()) == []


def test_a_temporary_folder_without_space(tmp_path: Path) -> None:
    official(tmp_path)
    pack(tmp_path / name("train", "x.h5"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        refused(tmp_path, MachineError, "no space is left", tempfile.gettempdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_papers_training_set(tmp_path: Path) -> None:
    made = official(tmp_path)
    source = pcam.read(tmp_path, imratio=0.1, seed=3)
    scans = source.scans
    pool, test = scans.filter(split="train"), scans.filter(split="test")
    assert scans["split"].unique().sort().to_list() == ["test", "train"]
    assert len(test) == 16
    assert test["label:tumor"].sum() == 8
    # 30 negatives of train and valid stay, and 0.1 / 0.9 of their number of positives.
    assert len(pool) == 33
    assert pool["label:tumor"].sum() == 3
    numbers = {"train": 0, "valid": 40, "test": 60}
    rows = [numbers[scan.split("/")[0]] + int(scan.split("/")[1]) for scan in scans["id"]]
    images, labels = all_of(made, 0), all_of(made, 1)
    assert set(np.flatnonzero(labels[:60] == 0)) <= set(rows)
    assert np.array_equal(list(source.pixels(0)), images[rows])
    assert np.array_equal(list(source.pixels(30)), images[rows[30:]])
    assert np.array_equal(scans["label:tumor"], labels[rows])
    assert scans["patient"].n_unique() == 6
    assert any("3 of 30 positives, 9.09% of 33 scans (seed 3)" in note for note in source.notes)

    assert pcam.read(tmp_path, imratio=0.1, seed=3).scans.equals(scans)
    assert not pcam.read(tmp_path, imratio=0.1, seed=4).scans["id"].equals(scans["id"])


def test_the_papers_number_of_images() -> None:
    # Train and valid are 294,912 patches, about half of them negative; the paper has 148,960 at 1 % positive.
    positive = np.arange(262_144 + 32_768) >= 147_471
    kept = splits.imbalanced(positive, 0.01, seed=0)
    assert kept.sum() == 148_960
    assert kept[positive].sum() == 1489


@pytest.mark.parametrize("imratio", [0.0, 1.0, 0.6])
def test_shares_that_cannot_be(tmp_path: Path, imratio: float) -> None:
    official(tmp_path)
    refused(tmp_path, UsageError, "imratio must", "--imratio", imratio=imratio)


def kaggle(folder: Path, number: int = 20) -> list[str]:
    """Kaggle's tree; every fourth patch is positive."""
    ids = [f"{n * 7919:040x}" for n in range(number)]
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for n, one in enumerate(ids if part == "train" else ["f" * 40]):
            Image.fromarray(np.full((96, 96, 3), n * 10, np.uint8)).save(folder / part / f"{one}.tif")
    rows = [f"{one},{int(n % 4 == 0)}" for n, one in enumerate(ids)]
    (folder / "train_labels.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    return ids


@pytest.mark.parametrize("below", ["", "histopathologic-cancer-detection"])
def test_kaggles_tree(tmp_path: Path, below: str) -> None:
    ids = kaggle(tmp_path / below)
    source = pcam.read(tmp_path)
    assert source.scans["id"].to_list() == [f"train/{one}.tif" for one in ids]
    assert all(Path(path).is_file() for path in source.scans["path"])
    assert source.scans["label:tumor"].sum() == 5
    assert source.scans["patient"].null_count() == source.scans["split"].null_count() == 20
    assert source.pixels is None
    assert any("no slide is known" in note for note in source.notes)
    assert any("test/ have no labels" in note for note in source.notes)

    thinned = pcam.read(tmp_path, imratio=0.1, seed=1).scans
    assert (len(thinned), thinned["label:tumor"].sum()) == (16, 1)
    assert thinned["split"].null_count() == 16


@pytest.mark.parametrize(
    "row", ["../../etc/passwd,1", "f00,1", "F" * 40 + ",1", "/" + "0" * 39 + ",1", "0" * 40 + ",2"]
)
def test_kaggle_rows_that_are_none(tmp_path: Path, row: str) -> None:
    kaggle(tmp_path, 2)
    with (tmp_path / "train_labels.csv").open("a") as file:
        file.write(row)
    with pytest.raises(DataError, match="row 3 below the header"):
        pcam.read(tmp_path)


def test_folders_that_hold_none(tmp_path: Path) -> None:
    refused(tmp_path / "absent", UsageError, "no such folder")
    (tmp_path / "x.h5").write_text("")
    refused(tmp_path / "x.h5", UsageError, "is a folder")
    refused(tmp_path, DataError, "there is no PatchCamelyon", "damcli prepare pcam")


def test_prepared_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    made = official(tmp_path / "pcam")
    source = prepare.read("pcam", tmp_path / "pcam", imratio=0.2, seed=5)
    steps = prepare.prepare(source, tmp_path / "dataset", workers=0)
    list(islice(steps, 20))
    steps.close()  # killed, and called again
    list(prepare.prepare(source, tmp_path / "dataset", workers=0))
    data = Dataset.open(tmp_path / "dataset")
    images = dict(zip(pcam.read(tmp_path / "pcam").scans["id"], all_of(made, 0), strict=True))
    assert data.info.splits == {"train": 37, "test": 16}
    for row, scan in enumerate(data.manifest["id"]):
        assert np.array_equal(data.read(np.array([row]))[0], images[scan])
