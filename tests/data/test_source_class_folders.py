"""A folder of images per class, tidy and not."""

import os
import shutil
from pathlib import Path

import pytest

from damcli.data.sources import Source, class_folders, locate, table
from damcli.errors import UsageError


def made(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def ones(source: Source, finding: str) -> list[str]:
    return [scan for scan, label in source.scans.select("id", f"label:{finding}").iter_rows() if label == 1]


def refused(root: Path, *said: str, **columns: object) -> None:
    with pytest.raises(UsageError) as caught:
        table.read(root, **{"label_columns": [], **columns})
    for text in said:
        assert text in str(caught.value)


def test_each_class_is_a_finding_but_the_one_without(tmp_path: Path) -> None:
    made(tmp_path, "Normal/1.png", "edema/deep/er/1.jpg", "edema/2", "fracture/1.dcm")
    source = table.read(tmp_path, [])
    assert source.name == "table"
    assert source.findings == ["edema", "fracture"]
    assert source.scans["id"].to_list() == ["Normal/1.png", "edema/2", "edema/deep/er/1.jpg", "fracture/1.dcm"]
    assert source.scans["path"][2] == str(tmp_path / "edema" / "deep" / "er" / "1.jpg")
    assert source.scans["label:edema"].to_list() == [0, 1, 1, 0]
    assert source.scans["label:fracture"].to_list() == [0, 0, 0, 1]
    assert source.scans["patient"].null_count() == source.scans["split"].null_count() == 4
    assert any("leakage cannot be excluded" in note for note in source.notes)
    assert "findings: edema, fracture; other classes: Normal" in source.notes


def test_splits_are_folders(tmp_path: Path) -> None:
    made(
        tmp_path, "Train/NORMAL/1.png", "Train/sick/1.png", "val/normal/1.png", "VALIDATION/sick/1.png",
        "test/sick/1.png", "test/loose.png", "test/other/.hidden", "__MACOSX/Train/._1.png",
    )  # fmt: skip
    source = table.read(tmp_path, [])
    assert source.findings == ["sick"]
    assert dict(source.scans.select("id", "split").iter_rows()) == {
        "Train/NORMAL/1.png": "train",
        "Train/sick/1.png": "train",
        "val/normal/1.png": "valid",
        "VALIDATION/sick/1.png": "valid",
        "test/sick/1.png": "test",
    }
    assert sorted(ones(source, "sick")) == ["Train/sick/1.png", "VALIDATION/sick/1.png", "test/sick/1.png"]
    said = " ".join(source.notes)
    assert "Train, VALIDATION, test, val" in said
    assert "no image lies in it: other" in said
    assert "1 files, such as loose.png" in said
    made(tmp_path, "more/sick/1.png")
    refused(tmp_path, "more beside it is none")


def test_a_root_called_like_a_split_is_none(tmp_path: Path) -> None:
    source = table.read(made(tmp_path / "train", "no/1.png", "yes/1.png"), [])
    assert source.scans["split"].null_count() == 2


def test_splits_without_classes_are_no_classes(tmp_path: Path) -> None:
    refused(made(tmp_path, "train/1.png", "test/1.png"), "which table?", "no folders of images")


def test_which_of_two_classes_is_asked(tmp_path: Path) -> None:
    made(tmp_path, "cat/1.png", "dog/1.png")
    refused(tmp_path, "which of cat and dog is the finding?", "--label-columns dog")
    source = table.read(tmp_path, ["DOG"])
    assert source.findings == ["dog"]
    assert source.scans["label:dog"].to_list() == [0, 1]
    refused(tmp_path, "no class 'dogs'", "did you mean dog?", label_columns=["dogs"])
    refused(tmp_path, "given twice", label_columns=["dog", "Dog"])
    refused(made(tmp_path / "none", "normal/1.png", "benign/1.png"), "which of benign and normal")


@pytest.mark.parametrize(
    "name",
    [
        "normal", "NEGATIVE", "neg", "Benign", "healthy", "Control", "No Finding", "no_finding", "none", "0", "no",
        "NonDemented", "no_tumor", "not sick",
    ],
)  # fmt: skip
def test_names_that_mean_no_finding(tmp_path: Path, name: str) -> None:
    assert table.read(made(tmp_path, f"{name}/1.png", "a/1.png"), []).findings == ["a"]


@pytest.mark.parametrize("name", ["nodule", "abnormal", "notch", "1", "neglect"])
def test_names_that_only_look_so(name: str) -> None:
    assert not class_folders.means_no_finding(name)


def test_what_is_no_image_is_passed_over_and_the_rest_is_said(tmp_path: Path) -> None:
    made(
        tmp_path, "a/1.png", "a/Thumbs.db", "a/desktop.ini", "a/notes.TXT", "a/1.json", "a/1.xml", "a/deep/t.csv",
        "a/.ipynb_checkpoints/1.png", "a/._1.png", "b/1.png", "b/broken.png", "SOURCE.txt", "loose.png", ".git/1.png",
        "c/README.md",
    )  # fmt: skip
    (tmp_path / "empty").mkdir()
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "annex" / "1.png")
    os.mkfifo(tmp_path / "b" / "pipe")
    source = table.read(tmp_path, ["a"])
    assert source.scans["id"].to_list() == ["a/1.png", "b/1.png", "b/broken.png"]
    assert [name for name, _ in source.refused] == ["b/gone.png", "b/pipe"]
    said = " ".join(source.notes)
    assert "no image lies in it: c, empty" in said
    assert "1 files, such as loose.png" in said
    refused(tmp_path, "no class 'empty'", label_columns=["empty"])


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    made(tmp_path, "root/a/1.png", "root/b/1.png", "elsewhere/1.png")
    root = tmp_path / "root"
    (root / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for link, target in (("loop", root), ("up", tmp_path), ("a/loop", root / "a"), ("b/loop", root), ("self", "self")):
        (root / link).symlink_to(target)
    source = table.read(root, [])
    assert source.findings == ["a", "b", "c"]
    assert source.scans["id"].to_list() == ["a/1.png", "b/1.png", "c/1.png"]


def test_names_in_latin1_and_in_other_scripts_and_long_ones(tmp_path: Path) -> None:
    root = tmp_path / "Größe"
    deep = "/".join(["d" * 200] * 3)
    made(root, "b/漢字.png", f"b/{deep}/{'n' * 250}.png")
    for name in (b"M\xfcll/R\xf6ntgen.png", b"b/\xff.png"):
        file = os.fsencode(root) + b"/" + name
        os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120
        with open(file, "wb") as content:  # noqa: PTH123
            content.write(name)
    source = table.read(root, ["Müll"])
    ids = source.scans["id"].to_list()
    assert set(ids) == {"Müll/Röntgen.png", "b/ÿ.png", "b/漢字.png", f"b/{deep}/{'n' * 250}.png"}
    assert ones(source, "Müll") == ["Müll/Röntgen.png"]
    assert all(locate(path).is_file() for path in source.scans["path"])
    assert locate(source.scans["path"][ids.index("Müll/Röntgen.png")]).read_bytes().endswith(b"R\xf6ntgen.png")
    "".join(source.notes).encode()


def test_fewer_than_two_classes(tmp_path: Path) -> None:
    made(tmp_path, "set/a/1.png", "set/b/1.png", "1.png")
    refused(tmp_path, "'set'", f"prepare table {tmp_path / 'set'}")
    refused(tmp_path / "set" / "a", "no folders of images", "it has no folders")


def test_a_table_beside_the_folders_counts(tmp_path: Path) -> None:
    made(tmp_path, "a/1.png", "b/1.png")
    refused(tmp_path, "only folders", "leave out --patient-column", patient_column="who")
    (tmp_path / "labels.csv").write_text("path,sick\na/1.png,1\n")
    assert table.read(tmp_path, ["sick"]).findings == ["sick"]


def test_real_classes(test_data: Path, tmp_path: Path) -> None:
    shutil.copytree(test_data / "mednist_64px", tmp_path / "mednist", ignore=shutil.ignore_patterns("*.csv"))
    source = table.read(tmp_path / "mednist", [])
    assert source.findings == ["AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"]
    assert source.scans.select("^label:.*$").sum().row(0) == (150,) * 6
    assert len(source.scans) == 900
    listed = table.read(test_data / "mednist_64px", ["is_cxr"])
    assert sorted(ones(source, "CXR")) == sorted(ones(listed, "is_cxr"))


def test_a_link_that_leads_above_a_class_does_not_put_other_classes_into_it(tmp_path: Path) -> None:
    made(tmp_path, "scans/normal/1.png", "scans/edema/2.png", "elsewhere/3.png")
    (tmp_path / "scans" / "edema" / "up").symlink_to("..")
    (tmp_path / "scans" / "edema" / "more").symlink_to(tmp_path / "elsewhere")
    source = table.read(tmp_path / "scans", [])
    assert source.scans["id"].to_list() == ["edema/2.png", "edema/more/3.png", "normal/1.png"]
    assert ones(source, "edema") == ["edema/2.png", "edema/more/3.png"]
