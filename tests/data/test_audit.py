"""Leaks and other reasons to distrust a dataset's figures."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.commands.prepare import prepare, read
from damcli.data import audit
from damcli.data.audit import Print, image_print
from damcli.data.sources import table_of
from damcli.data.store import Dataset
from damcli.errors import DataError


def scans(patients, splits, labels, **metadata) -> pl.DataFrame:
    ids = [f"{number}.png" for number in range(len(splits))]
    return table_of(ids, ids, {"sick": labels}, patient=patients, split=splits, **metadata)


def kinds(concerns) -> list[str]:
    return [concern.kind for concern in concerns]


def test_patients_studies_and_folds_on_two_sides_are_leaks() -> None:
    parts = ["train", "valid", "train", "test"]
    clean = scans(["a", "b", "a", "c"], parts, [0, 1, 1, 0], study=["s", "t", "s", "u"])
    assert audit.of_table(clean, ["sick"]) == []
    leaky = scans(["a", "a", "b", "b"], parts, [0, 1, 1, 0], study=["s", "s", "t", "u"])
    patients, studies = audit.of_table(leaky, ["sick"])
    assert (patients.kind, patients.scans) == ("patients", ("0.png", "1.png"))
    assert patients.text == "2 patients have scans in two splits"
    assert (studies.kind, studies.leak) == ("studies", True)
    folded = clean.with_columns(fold=pl.Series([0, None, 1, None], dtype=pl.Int32))
    assert kinds(audit.of_table(folded, ["sick"])) == ["folds"]
    with pytest.raises(DataError, match="2 patients .*\n.*0.png and 1.png\n.*--allow-leaks"):
        audit.stop([patients], allow_leaks=False)
    audit.stop([patients], allow_leaks=True)


def test_studies_numbered_per_patient_are_no_leak() -> None:
    parts = ["train", "train", "valid", "valid"]
    numbered = scans(["a", "a", "b", "b"], parts, [0, 1, 1, 0], study=["1", "2", "1", "2"])
    assert audit.of_table(numbered, ["sick"]) == []
    unknown = scans(["a", "a", None, "b"], parts, [0, 1, 1, 0], study=["s", "t", "s", "u"])
    assert kinds(audit.of_table(unknown, ["sick"])) == ["studies", "unknown"]


def test_the_class_that_a_label_was_made_of_is_not_named() -> None:
    labels = [float(number % 2) for number in range(40)]
    some = scans([f"p{n}" for n in range(40)], ["train"] * 40, labels, **{"class": [int(x) for x in labels]})
    assert audit.of_table(some, ["sick"]) == []


def test_blank_patients_are_never_one_patient_and_it_is_said() -> None:
    some = scans([None, None, "a"], ["train", "valid", "train"], [0, 1, 1])
    [concern] = audit.of_table(some, ["sick"])
    assert (concern.kind, concern.leak) == ("unknown", False)
    assert concern.text == "2 scans have no patient id: leakage cannot be excluded"


def test_a_column_that_tells_the_label_is_named() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.3).astype(float)
    patients = [f"p{n}" for n in range(400)]
    scanner = np.where(labels == 1, "HOWTEK", np.where(rng.random(400) < 0.2, "HOWTEK", "DBA"))
    found = audit.of_table(
        scans(
            patients, ["train"] * 400, labels,
            scanner=scanner, noise=rng.random(400), dose=-labels * 2, name=patients, one=["x"] * 400,
        ),
        ["sick"],
    )  # fmt: skip
    assert [concern.text.split(" alone")[0] for concern in found] == ["the column scanner", "the column dose"]
    # AUROC of two values is half of sensitivity + specificity.
    specificity = (scanner[labels == 0] == "DBA").mean()
    assert f"AUROC {(1 + specificity) / 2:.2f}" in found[0].text
    assert "AUROC 1.00" in found[1].text
    held_out = scans(patients, ["test"] * 400, labels, scanner=scanner)
    assert audit.of_table(held_out, ["sick"]) == []


def test_a_column_that_tells_soft_labels_is_named() -> None:
    shares = np.resize([0, 1 / 3, 2 / 3, 1, 0.5, -1], 120)
    # Where readers are of two minds, the column says nothing that counts.
    scanner = np.where(shares > 0.5, "HOWTEK", np.where(shares >= 0, "DBA", "HOWTEK"))
    [concern] = audit.of_table(scans([f"p{n}" for n in range(120)], ["train"] * 120, shares, scanner=scanner), ["sick"])
    assert concern.text == "the column scanner alone tells sick with AUROC 1.00 in train"


def test_prints_know_equal_images_similar_ones_and_blank_ones() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 240, (40, 40), np.uint8)
    dimmed = image + np.uint8(10)
    colour = rng.integers(0, 256, (40, 40, 3), np.uint8)
    blank = np.full((40, 40), 255, np.uint8)
    assert image_print(image) == image_print(image.copy())
    assert image_print(image).exact != image_print(dimmed).exact
    assert image_print(image).rough == image_print(dimmed).rough
    assert image_print(colour) != image_print(colour[::-1].copy())
    assert image_print(blank) == image_print(np.zeros((40, 40, 3), np.uint8)) == Print(b"", b"")


def test_copies_across_splits_are_leaks_and_within_one_are_only_said() -> None:
    one, two, three = (Print(bytes([n]), bytes([n])) for n in (1, 2, 3))
    like_one = Print(b"x", one.rough)
    ids = list("abcdefg")
    parts = ["train", "train", "valid", "train", "test", "valid", "valid"]
    prints = [one, one, one, two, like_one, Print(b"", b""), three]
    found = audit.of_images(prints, ids, parts)
    assert kinds(found) == ["images", "copies", "similar"]
    images, copies, similar = found
    assert (images.scans, images.leak) == (("a", "c"), True)
    assert images.text == "1 images are in two splits, pixel for pixel"
    assert (copies.scans, copies.leak) == (("a", "b"), False)
    assert (similar.scans, similar.leak) == (("a", "e"), False)


def tree(folder: Path) -> Path:
    """Twelve patients; the picture of the last, in test, is a copy of the first one's file."""
    rng = np.random.default_rng(2)
    rows = ["path,patient,split,sick"]
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (30, 30), np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,p{number},{'test' if number > 8 else 'train'},{number % 2}")
    (folder / "11.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "scans.csv").write_text("\n".join(rows) + "\n")
    return folder / "scans.csv"


def test_prepare_stops_at_a_copy_and_goes_on_from_there_when_allowed(tmp_path: Path) -> None:
    source = read("table", tree(tmp_path), label_columns=["sick"], patient_column="patient", split_column="split")
    with pytest.raises(
        DataError, match="1 images are in two splits, pixel for pixel, 1 of them the same file"
    ) as stopped:
        list(prepare(source, tmp_path / "made", size=16, workers=0))
    assert stopped.value.where == "0.png and 11.png"
    assert not (tmp_path / "made" / "dataset.json").exists()
    steps = list(prepare(source, tmp_path / "made", size=16, workers=0, allow_leaks=True))
    assert [step.done for step in steps] == [12], "what was decoded is not decoded again"
    made = Dataset.open(tmp_path / "made")
    assert [(concern.kind, concern.leak) for concern in made.info.audit] == [("images", True)]


def test_prints_are_the_same_after_a_restart(tmp_path: Path) -> None:
    from damcli.data.images import Contract
    from damcli.data.workers import decode
    from damcli.data.writer import write

    source = read("table", tree(tmp_path), label_columns=["sick"], patient_column="patient", split_column="split")
    contract = Contract(size=16, channels=1)
    steps = write(tmp_path / "made", source, contract, lambda paths: decode(paths, contract, 0), shard_scans=5)
    while next(steps).done < 7:
        pass
    steps.close()
    with pytest.raises(DataError, match="1 images are in two splits"):
        list(write(tmp_path / "made", source, contract, lambda paths: decode(paths, contract, 0), shard_scans=5))


def test_what_is_remarkable_outlives_a_restart(tmp_path: Path) -> None:
    from damcli.data.images import Contract
    from damcli.data.workers import Decoded
    from damcli.data.writer import write

    source = read("table", tree(tmp_path), label_columns=["sick"], patient_column="patient", split_column="split")

    def decode(paths):
        for number, path in enumerate(paths):
            pixels = np.random.default_rng(int(path.stem)).integers(0, 256, (8, 8), np.uint8)
            yield Decoded(number, pixels, "ok", "odd" if int(path.stem) % 3 == 0 else "")

    contract = Contract(size=8, channels=1)
    list(write(tmp_path / "whole", source, contract, decode, shard_scans=5))
    steps = write(tmp_path / "twice", source, contract, decode, shard_scans=5)
    while next(steps).done < 8:
        pass
    steps.close()
    list(write(tmp_path / "twice", source, contract, decode, shard_scans=5))
    for name in ("dataset.json", "manifest.parquet", "images-00000.npy", "images-00002.npy"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    made = Dataset.open(tmp_path / "twice")
    assert made.manifest["remark"].to_list() == ["odd", None, None] * 4
    assert [concern.text for concern in made.info.audit] == ["4 scans: odd"]


def test_remarks_of_single_scans_are_counted() -> None:
    found = audit.of_remarks(["a; b", "a"])
    assert sorted(concern.text for concern in found) == ["1 scans: b", "2 scans: a"]
    assert audit.of_remarks([]) == []
