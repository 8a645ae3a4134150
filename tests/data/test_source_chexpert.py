"""CheXpert trees as users have them, and tables that are not."""

from pathlib import Path

import polars as pl
import pytest

from damcli.commands import prepare
from damcli.data.labels import CHEXPERT_FINDINGS, COMPETITION
from damcli.data.sources import Source, chexpert
from damcli.errors import DamcliError, DataError, UsageError

HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]


def row(path: str, sex: str = "Female", age: str = "60", view: str = "Frontal", projection: str = "AP", **labels: str):
    named = {name.replace("_", " "): value for name, value in labels.items()}
    return ",".join([path, sex, age, view, projection, *(named.get(finding, "") for finding in CHEXPERT_FINDINGS)])


def table(file: Path, *rows: str, header: list[str] = HEADER) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([",".join(header), *rows]) + "\n")


def tree(folder: Path, prefix: str = "CheXpert-v1.0-small/") -> Path:
    """Traps of the real file: study2 before study1, a lateral view1, LL, Sex Unknown, Age 0, all four label codes."""
    table(
        folder / "train.csv",
        row(f"{prefix}train/patient00002/study2/view1_frontal.jpg", Edema="-1.0", Cardiomegaly="1.0"),
        row(f"{prefix}train/patient00002/study1/view1_frontal.jpg", projection="LL", Edema="0.0"),
        row(f"{prefix}train/patient00003/study1/view1_lateral.jpg", view="Lateral", projection="", Edema="1.0"),
        row(f"{prefix}train/patient33093/study1/view2_frontal.jpg", sex="Unknown", age="34"),
        row(f"{prefix}train/patient64538/study1/view1_frontal.jpg", sex="Male", age="0", Pleural_Effusion="1"),
    )
    table(
        folder / "valid.csv",
        row(f"{prefix}valid/patient64541/study1/view1_frontal.jpg", sex="Male", age="73", Edema="0", Cardiomegaly="1"),
    )
    return folder


IDS = [
    "train/patient00002/study2/view1_frontal.jpg",
    "train/patient00002/study1/view1_frontal.jpg",
    "train/patient33093/study1/view2_frontal.jpg",
    "train/patient64538/study1/view1_frontal.jpg",
    "valid/patient64541/study1/view1_frontal.jpg",
]


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0-small/", "CheXpert-v1.0/", "", "my train/train/"])
@pytest.mark.parametrize("below", ["", "CheXpert-v1.0-small"])
def test_trees_with_and_without_their_top_folder(tmp_path: Path, prefix: str, below: str) -> None:
    made = tree(tmp_path / below, prefix)
    source = chexpert.read(tmp_path)
    assert source.scans["id"].to_list() == IDS
    assert source.scans["path"].to_list() == [str(made / name) for name in IDS]
    assert source.root == made


def test_what_a_row_says(tmp_path: Path) -> None:
    source = chexpert.read(tree(tmp_path))
    scans = source.scans
    assert scans["patient"].to_list() == [
        "patient00002", "patient00002", "patient33093", "patient64538", "patient64541",
    ]  # fmt: skip
    assert scans["study"][:2].to_list() == ["patient00002/study2", "patient00002/study1"]
    assert scans["split"].to_list() == ["train"] * 4 + ["valid"]
    assert set(scans["view"]) == {"frontal"}
    assert scans["sex"].to_list() == ["Female", "Female", None, "Male", "Male"]
    assert scans["age"].to_list() == [60, 60, 34, None, 73]
    assert scans["projection"].to_list() == ["AP", "LL", "AP", "AP", "AP"]
    assert scans["label:Edema"].to_list() == [-1, 0, None, None, 0]
    assert scans["label:Pleural Effusion"].to_list() == [None, None, None, 1, None]
    assert source.findings == list(COMPETITION)
    assert source.policies["Edema"].uncertain == "ones-lsr"
    assert any("1 lateral" in note for note in source.notes)


def test_all_views_and_other_findings(tmp_path: Path) -> None:
    source = chexpert.read(tree(tmp_path), ["no finding", "Edema"], views="all")
    assert source.findings == ["No Finding", "Edema"]
    assert source.policies["No Finding"].uncertain == "ignore"
    assert source.scans["view"].to_list().count("lateral") == 1
    assert [name for name in source.scans.columns if name.startswith("label:")] == ["label:No Finding", "label:Edema"]


def test_views_come_from_the_file_name_where_no_column_says(tmp_path: Path) -> None:
    header = ["Path", *COMPETITION]
    table(
        tmp_path / "valid.csv",
        "valid/patient1/study1/view1_frontal.jpg,0,0,0,0,0",
        "valid/patient1/study1/view2_lateral.jpg,0,0,0,0,0",
        "valid/patient1/study1/image.jpg,0,0,0,0,0",
        header=header,
    )
    assert chexpert.read(tmp_path, views="all").scans["view"].to_list() == ["frontal", "lateral", None]
    assert chexpert.read(tmp_path).scans["view"].to_list() == ["frontal", None]


def test_one_table_only(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "valid.csv").rename(tmp_path / "elsewhere.csv")
    (tmp_path / "valid").mkdir()
    source = chexpert.read(tmp_path)
    assert source.scans["split"].null_count() == len(source.scans) == 4
    assert any("no valid.csv" in note and "left out" in note for note in source.notes)

    (tmp_path / "train.csv").unlink()
    (tmp_path / "elsewhere.csv").rename(tmp_path / "valid.csv")
    assert chexpert.read(tmp_path).scans["split"].to_list() == ["valid"]


def test_other_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    expected = chexpert.read(tree(tmp_path)).scans
    for name in ("train.csv", "valid.csv"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").rstrip().encode())
    assert chexpert.read(tmp_path).scans.equals(expected)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", row("train/patient1/study1/R\xf6ntgen_frontal.jpg"))
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_bytes(text.encode("latin-1"))
    assert chexpert.read(tmp_path).scans["id"].to_list() == ["train/patient1/study1/R\xf6ntgen_frontal.jpg"]


def test_rows_that_leave_the_tree_are_refused_one_by_one(tmp_path: Path) -> None:
    tree(tmp_path)
    with (tmp_path / "train.csv").open("a") as file:
        for path in ("/etc/passwd", "../../secret.png", "train/../../x.png", "a\0b.png", ""):
            file.write(row(path) + "\n")
    source = chexpert.read(tmp_path)
    assert source.scans["id"].to_list() == IDS
    assert [path for path, _ in source.refused] == [
        "/etc/passwd",
        "../../secret.png",
        "train/../../x.png",
        "a\0b.png",
        "",
    ]
    assert all(reason for _, reason in source.refused)


def refused(folder: Path, kind: type[DamcliError], *said: str, **arguments: object) -> None:
    with pytest.raises(kind) as caught:
        chexpert.read(folder, **arguments)
    for text in said:
        assert text in str(caught.value)


def test_folders_that_hold_no_tree(tmp_path: Path) -> None:
    refused(tmp_path / "absent", UsageError, "no such folder", "absent")
    (tmp_path / "images").mkdir()
    refused(tmp_path, DataError, "neither train.csv nor valid.csv", "images", "fix")
    (tmp_path / "train.csv").write_text("")
    refused(tmp_path / "train.csv", UsageError, "folder")


def test_two_trees_equally_good(tmp_path: Path) -> None:
    tree(tmp_path / "one")
    tree(tmp_path / "two")
    refused(tmp_path, UsageError, "one, two", f"damcli prepare chexpert {tmp_path / 'one'}")
    table(tmp_path / "three" / "train.csv", "1,2", header=["image", "label"])
    (tmp_path / "two" / "train.csv").unlink()
    (tmp_path / "two" / "valid.csv").unlink()
    assert chexpert.read(tmp_path).root == tmp_path / "one"


def test_tables_that_lack_a_column(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", "a.jpg,1", header=["image", "Edema"])
    refused(tmp_path, DataError, "'Path'", "train.csv")
    table(tmp_path / "train.csv", "a.jpg,1", header=["Path", "Edema"])
    refused(tmp_path, DataError, "'Cardiomegaly'", "train.csv")
    assert len(chexpert.read(tmp_path, ["Edema"]).scans) == 1


@pytest.mark.parametrize("label", ["yes", "2", "0.5", "inf"])
def test_labels_that_are_none_are_named_by_row(tmp_path: Path, label: str) -> None:
    good, bad = "train/patient1/study1/view1_frontal.jpg", "train/patient2/study1/view1_frontal.jpg"
    table(tmp_path / "train.csv", row(good, Edema="1"), row(bad, Edema=label))
    refused(tmp_path, DataError, "train.csv, row 2 below the header, column 'Edema'")


def test_rows_of_another_length_are_named_by_line(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", row("train/patient1/study1/view1_frontal.jpg") + ",1")
    refused(tmp_path, DataError, "line 2 has 20 fields, the header 19", "train.csv")


def test_a_scan_named_twice(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", *[row("x/train/patient1/study1/view1_frontal.jpg")] * 2)
    refused(tmp_path, DataError, "more than once", "train/patient1/study1/view1_frontal.jpg")


def test_an_empty_table(tmp_path: Path) -> None:
    table(tmp_path / "train.csv")
    refused(tmp_path, DataError, "empty")


def test_unknown_findings(tmp_path: Path) -> None:
    refused(tree(tmp_path), UsageError, "Cardiomegali", "did you mean Cardiomegaly?", findings=["Cardiomegali"])


def test_the_real_scans(test_data: Path) -> None:
    source: Source = chexpert.read(test_data / "nih_cxr_512", CHEXPERT_FINDINGS)
    assert source.scans.group_by("split").len().sort("split").rows() == [("train", 366), ("valid", 132)]
    assert source.scans["patient"].n_unique() == 341
    assert all(Path(path).is_file() for path in source.scans["path"])
    train = source.scans.filter(pl.col("split") == "train")
    assert train["label:Cardiomegaly"].sum() == 8
    assert train["label:Fracture"].null_count() == 366


def test_patients_are_known_from_flattened_names_too_and_a_missing_one_is_said(tmp_path: Path) -> None:
    names = ["patient00002_study2_view1_frontal.jpg", "patient00002/view3_frontal.jpg", "scan7.jpg"]
    table(tmp_path / "train.csv", *(row(f"CheXpert-v1.0/train/{name}") for name in names))
    source = chexpert.read(tmp_path)
    assert source.scans["patient"].to_list() == ["patient00002", "patient00002", None]
    assert source.scans["study"].to_list() == ["patient00002/study2", None, None]
    assert any("1 scans have no patient" in note for note in source.notes)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def rest(name: str) -> str:
    """What follows the split."""
    return name.partition("/")[2]


BATCHES = ["CheXpert-v1.0 batch 1 (validate & csv)", *(f"CheXpert-v1.0 batch {n} (train {n - 1})" for n in (2, 3, 4))]


def top_folder(folder: Path, names: list[str]) -> Path:
    touch(folder / "CheXpert-v1.0-small", *names)
    return tree(folder / "CheXpert-v1.0-small")


def no_top_folder(folder: Path, names: list[str]) -> Path:
    touch(folder, *names)
    return tree(folder)


def batches(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        valid = name.startswith("valid/")
        touch(folder / BATCHES[0 if valid else 1 + (number > 1) + (number > 2)], name if valid else rest(name))
    touch(folder / BATCHES[3], "patient09999/study1/view1_frontal.jpg")
    return tree(folder / BATCHES[0], "CheXpert-v1.0/")


def flattened(folder: Path, names: list[str]) -> Path:
    touch(folder, *(f"{name.partition('/')[0]}/{rest(name).replace('/', '_')}" for name in names))
    return tree(folder)


def flattened_into_one(folder: Path, names: list[str]) -> Path:
    touch(folder / "images", *(rest(name).replace("/", "_") for name in names))
    return tree(folder)


def no_split_folder(folder: Path, names: list[str]) -> Path:
    touch(folder, *map(rest, names))
    return tree(folder)


def val_for_valid(folder: Path, names: list[str]) -> Path:
    touch(folder, *(name.replace("valid/", "val/") for name in names))
    return tree(folder)


TREES = [top_folder, no_top_folder, batches, flattened, flattened_into_one, no_split_folder, val_for_valid]
LATERAL = "train/patient00003/study1/view1_lateral.jpg"


@pytest.mark.parametrize("make", TREES)
def test_the_same_scans_in_every_tree(tmp_path: Path, make) -> None:
    expected = chexpert.read(tree(tmp_path / "expected")).scans.drop("path")
    made = make(tmp_path / "data", IDS)
    for given in (tmp_path / "data", made):
        source = chexpert.read(given)
        assert source.scans.drop("path").equals(expected)
        assert [path for path in source.scans["path"] if not Path(path).is_file()] == []
        assert source.scans["path"].n_unique() == len(IDS)
    assert source.refused == []


@pytest.mark.parametrize("make", TREES)
def test_rows_that_leave_the_tree_are_refused_in_every_tree(tmp_path: Path, make) -> None:
    touch(tmp_path, "secret.png", "patient00002_study2_view1_frontal.jpg")
    made = make(tmp_path / "data", IDS)
    hostile = ["/etc/passwd", str(tmp_path / "secret.png"), "../secret.png", "train/../../secret.png",
               "train/patient00002/../../../secret.png", "valid/../../../data/../secret.png", "a\0b.png"]  # fmt: skip
    with (made / "train.csv").open("a") as file:
        file.write("".join(row(path) + "\n" for path in hostile))
    source = chexpert.read(tmp_path / "data")
    assert source.scans["id"].to_list() == IDS
    assert [path for path, _ in source.refused] == hostile
    assert all(Path(path).resolve().is_relative_to(tmp_path / "data") for path in source.scans["path"])


@pytest.mark.parametrize("make", TREES)
def test_rows_that_only_seem_to_stay_in_the_tree(tmp_path: Path, make) -> None:
    touch(tmp_path, "secret.png")
    made = make(tmp_path / "data", IDS)
    with (made / "train.csv").open("a") as file:
        file.write(row("train/../secret.png") + "\n")
    scans = chexpert.read(made).scans
    assert scans["path"].to_list()[4] == str(made / "secret.png")


@pytest.mark.parametrize("layout", ["plain", "batches", "flattened"])
def test_files_that_are_missing_do_not_change_the_tree(tmp_path: Path, layout: str) -> None:
    names = [f"train/patient{n:05}/study1/view1_frontal.jpg" for n in range(50)]
    folder = tmp_path / BATCHES[0] if layout == "batches" else tmp_path
    table(folder / "train.csv", *(row(f"CheXpert-v1.0/{name}") for name in names))
    where = {
        "plain": names,
        "batches": [f"{BATCHES[1 + n % 3]}/{rest(name)}" for n, name in enumerate(names)],
        "flattened": [f"train/{rest(name).replace('/', '_')}" for name in names],
    }[layout]
    missing = range(0, 50, 7)
    touch(tmp_path, *(name for n, name in enumerate(where) if n not in missing))
    scans = chexpert.read(tmp_path).scans
    assert scans["id"].to_list() == names
    assert [n for n, path in enumerate(scans["path"]) if not Path(path).is_file()] == list(missing)
    assert [path for n, path in enumerate(scans["path"]) if n not in missing] == [
        str(tmp_path / name) for n, name in enumerate(where) if n not in missing
    ]


def test_how_a_tree_differs_is_said(tmp_path: Path) -> None:
    batches(tmp_path, IDS)
    notes = chexpert.read(tmp_path).notes
    assert any("the images of train are spread over the folders of" in note for note in notes)
    assert any("the images of valid lie in CheXpert-v1.0 batch 1 (validate & csv)" in note for note in notes)
    assert not any("images of" in note for note in chexpert.read(tree(tmp_path / "x" / "y")).notes)


LABELS_ONLY = ["Path", *CHEXPERT_FINDINGS]


def labels_only(path: str, value: str = "0", **labels: str) -> str:
    named = {name.replace("_", " "): label for name, label in labels.items()}
    return ",".join([path, *(named.get(finding, value) for finding in CHEXPERT_FINDINGS)])


def later(folder: Path) -> None:
    """The tables that came with the test set: labels only, and a Path that says valid over a folder val."""
    table(
        folder / "val_labels.csv",
        labels_only("CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg", "0.0", Cardiomegaly="1.0"),
        labels_only("CheXpert-v1.0/valid/patient64541/study1/view2_lateral.jpg", "0.0"),
        header=LABELS_ONLY,
    )
    table(
        folder / "test_labels.csv",
        labels_only("test/patient64741/study1/view1_frontal.jpg", Edema="1"),
        labels_only("test/patient64741/study1/view2_lateral.jpg", Edema="1"),
        labels_only("test/patient64742/study1/view1_frontal.jpg"),
        header=LABELS_ONLY,
    )
    touch(folder, "val/patient64541/study1/view1_frontal.jpg", "val/patient64541/study1/view2_lateral.jpg")
    touch(folder, *(f"test/patient6474{n}/study1/view1_frontal.jpg" for n in (1, 2)))
    touch(folder, "test/patient64741/study1/view2_lateral.jpg")


def test_the_tree_of_the_test_set(tmp_path: Path) -> None:
    later(tmp_path / "CheXpert")
    source = chexpert.read(tmp_path)
    scans = source.scans
    assert scans["id"].to_list() == [
        "valid/patient64541/study1/view1_frontal.jpg",
        "test/patient64741/study1/view1_frontal.jpg",
        "test/patient64742/study1/view1_frontal.jpg",
    ]
    assert scans["split"].to_list() == ["valid", "test", "test"]
    assert scans["label:Edema"].to_list() == [0, 1, 0]
    assert scans["label:Cardiomegaly"].to_list() == [1, 0, 0]
    assert scans["study"][1] == "patient64741/study1"
    assert scans.select("sex", "age", "projection").null_count().row(0) == (3, 3, 3)
    assert all(Path(path).is_file() for path in scans["path"])
    assert any("2 lateral" in note for note in source.notes)
    assert any("no train.csv" in note for note in source.notes)
    assert chexpert.read(tmp_path, views="all").scans["view"].to_list().count("lateral") == 2
    file = tmp_path / "CheXpert" / "val_labels.csv"
    file.write_text(file.read_text().replace("CheXpert-v1.0/valid/", "val/"))
    assert chexpert.read(tmp_path).scans.equals(scans)


def test_train_valid_and_test_together(tmp_path: Path) -> None:
    later(tree(tmp_path))
    scans = chexpert.read(tmp_path).scans
    assert scans["split"].to_list() == ["train"] * 4 + ["valid"] + ["test"] * 2
    # The table that came first counts: the other one of the same scans has no demography.
    assert scans.filter(split="valid")["age"].to_list() == [73]

    (tmp_path / "valid.csv").unlink()
    scans = chexpert.read(tmp_path).scans
    assert scans["split"].to_list() == ["train"] * 4 + ["valid"] + ["test"] * 2
    (tmp_path / "val_labels.csv").unlink()
    # No scans to choose on are given: those of train are open, to be split by patient.
    source = chexpert.read(tmp_path)
    assert source.scans["split"].to_list() == [None] * 4 + ["test"] * 2
    made = prepare.read("chexpert", tmp_path, valid_fraction=0.5).scans
    assert set(made["split"][:4]) == {"train", "valid"}
    assert made["split"][:2].n_unique() == 1
    assert made["split"][4:].to_list() == ["test"] * 2


@pytest.mark.parametrize("name", ["train_cheXbert.csv", "train_visualCheXbert.csv"])
@pytest.mark.parametrize("below", ["", "tree", "beside"])
def test_other_labels_are_joined_by_path(tmp_path: Path, name: str, below: str) -> None:
    folder = tmp_path / BATCHES[0] if below == "beside" else tmp_path / below
    tree(folder, "CheXpert-v1.0-small/")
    # In another order, one scan less, one more, and with the prefix of the full set.
    table(
        (tmp_path if below == "beside" else folder) / name,
        *(labels_only(f"CheXpert-v1.0/{one}", "0.0", Edema=f"{n % 2}.0") for n, one in enumerate(IDS[3:0:-1])),
        labels_only("CheXpert-v1.0/train/patient64000/study1/view1_frontal.jpg", ""),
        labels_only(f"CheXpert-v1.0/{LATERAL}", "-1.0"),
        header=LABELS_ONLY,
    )
    plain = chexpert.read(tmp_path)
    assert plain.scans["label:Edema"].to_list() == [-1, 0, None, None, 0]
    assert any(f"--labels {name} takes them" in note for note in plain.notes)

    source = chexpert.read(tmp_path, labels=Path(name))
    assert source.scans["id"].to_list() == IDS[1:]
    assert source.scans["label:Edema"].to_list() == [0, 1, 0, 0]
    assert source.scans["label:Pleural Effusion"].to_list() == [0, 0, 0, None]
    assert source.scans["split"].to_list() == ["train"] * 3 + ["valid"]
    assert source.scans["age"].to_list() == [60, 34, None, 73]
    assert any("1 scans that it does not list are left out" in note for note in source.notes)
    assert any("1 of its rows name no scan" in note for note in source.notes)
    assert not any("takes them" in note for note in source.notes)


def test_other_labels_that_do_not_fit(tmp_path: Path) -> None:
    tree(tmp_path / "tree")
    refused(tmp_path, UsageError, "cannot be read", "nowhere.csv", labels=Path("nowhere.csv"))
    one = labels_only(f"CheXpert-v1.0/{IDS[0]}")
    for rows, said in (([one, one], "name a scan twice"), ([labels_only("train/x.jpg")], "none of the scans")):
        table(tmp_path / "other.csv", *rows, header=LABELS_ONLY)
        refused(tmp_path, DataError, said, "other.csv", labels=tmp_path / "other.csv")
    table(tmp_path / "other.csv", labels_only(IDS[0], "maybe"), header=LABELS_ONLY)
    refused(tmp_path, DataError, "row 1 below the header", "other.csv", labels=tmp_path / "other.csv")
    table(tmp_path / "other.csv", one, header=LABELS_ONLY)
    (tmp_path / "tree" / "train.csv").unlink()
    refused(tmp_path, UsageError, "for train", "other.csv", labels=tmp_path / "other.csv")


def test_labels_without_a_table_are_no_tree(tmp_path: Path) -> None:
    table(tmp_path / "train_cheXbert.csv", labels_only(IDS[0]), header=LABELS_ONLY)
    refused(tmp_path, DataError, "neither train.csv nor valid.csv")
