"""Merging of several sites' `metrics.json`: what is pooled, what is said, what is refused, and the page."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damcli.errors import DataError, UsageError
from damcli.metrics import components, estimate
from damcli.metrics.pooling import pool
from damcli.report import forest, merging, sites, tables
from damcli.report.gates import Gate

Make = Callable[..., dict[str, Any]]
NETWORK = "ab" * 32


def auroc(rng: np.random.Generator, gap: float, positives: int, negatives: int, level: float = 0.95) -> dict[str, Any]:
    targets = np.repeat([1.0, 0.0], [positives, negatives])
    figure = tables.document(estimate([components(targets, rng.normal(gap * targets))], level))
    return {"positives": positives, "negatives": negatives, "auroc": figure}


def metrics(seed: int, findings: tuple[str, ...] = ("Edema", "Fracture"), gap: float = 1.5, **others: Any) -> Any:
    """The parts of a site's `metrics.json` that count here, with drawn scores; dots in `others` go down into it."""
    rng = np.random.default_rng(seed)
    level = others.get("interval.level", 0.95)
    found = {name: auroc(rng, gap, 40, 100 + seed, level) for name in findings}
    document = {
        "schema_version": 2,
        "damcli": "0.1.0",
        "created": "2026-11-26T10:00:00+00:00",
        "subject": {"kind": "model", "path": "/home/someone/models/chest.onnx", "networks": [NETWORK]},
        "truth": {"path": "/home/someone/labels.csv", "split": None, "fingerprint": None, "ids_sha256": f"{seed:064x}"},
        "selection": {"used": False, "note": "neither trained nor selected on these scans"},
        "unit": {"by": "scan", "reduce": {}, "rule": "each scan is judged by itself"},
        "scans": 140 + seed,
        "units": 140 + seed,
        "patients": 140 + seed,
        "failed": 0,
        "views": 1,
        "interval": {"level": level, "auroc": "DeLong", "others": "bootstrap", "cluster": None, "draws": 9, "seed": 0},
        "findings": found,
        "mean": {"findings": len(found), "auroc": next(iter(found.values()))["auroc"]},
        "notes": ["a note that is not of use here"],
    }
    for path, value in others.items():
        put(document, path, value)
    return document


def put(document: Any, path: str, value: Any) -> None:
    *way, last = path.split(".")
    for key in way:
        document = document[key]
    document[last] = value


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., list[Path]]:
    """Returns `folder(a=document, …)`: the files a.json, … of these documents; text is written as it is."""

    def write(**documents: Any) -> list[Path]:
        paths = [tmp_path / f"{name}.json" for name in documents]
        for path, document in zip(paths, documents.values(), strict=True):
            text = document if isinstance(document, str) else json.dumps(document)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return paths

    return write


def merged(paths: list[Path]) -> dict[str, Any]:
    return merging.merge(sites.read(paths))


def nothing(why: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "why": why}


def test_findings_are_pooled_over_the_sites_that_have_them(folder: Callable[..., list[Path]]) -> None:
    given = {"a": metrics(1), "b": metrics(2), "c": metrics(3, ("Edema",))}
    document = merged(folder(**given))
    assert list(document["findings"]) == ["Edema", "Fracture"]
    assert list(document["findings"]["Fracture"]["sites"]) == ["a", "b"]
    assert "Fracture is not at c" in document["notes"]
    aurocs = [site["findings"]["Edema"]["auroc"] for site in given.values()]
    logits = [math.log(each["value"] / (1 - each["value"])) for each in aurocs]
    widths = [math.log(each["high"] / (1 - each["high"]) / (each["low"] / (1 - each["low"]))) for each in aurocs]
    expected = pool(logits, [width / 2 / 1.959963984540054 for width in widths])
    edema = document["findings"]["Edema"]
    for name, found in (("auroc", expected.fixed), ("random", expected.random), ("prediction", expected.prediction)):
        ends = [1 / (1 + math.exp(-each)) for each in found[:3]]
        assert [edema[name][key] for key in ("value", "low", "high")] == pytest.approx(ends)
    assert edema["heterogeneity"]["q"] == pytest.approx(expected.q)
    assert edema["heterogeneity"]["df"] == 2
    assert [edema["sites"][name]["weight"] for name in "abc"] == pytest.approx(expected.weights)
    assert document["mean"]["auroc"]["why"] == "the sites' means are over different findings"
    assert document["scans"] == sum(site["scans"] for site in given.values())


def test_the_mean_is_pooled_where_all_sites_have_it_of_the_same_findings(folder: Callable[..., list[Path]]) -> None:
    document = merged(folder(a=metrics(1), b=metrics(2)))
    assert document["mean"]["auroc"] == document["findings"]["Edema"]["auroc"]  # as `metrics` makes the means
    assert [row[0] for row in merging.rows(document)] == ["Edema", "Fracture", "mean"]
    assert Gate.parse("auroc.low>=0.5").value(document)[0] == document["mean"]["auroc"]["low"]
    assert Gate.parse("Edema.heterogeneity.i2<=0.5").value(document)[0] is not None
    assert Gate.parse("Edema.prediction.low>=0.5").value(document) == (None, "two sites only")
    assert any("two sites hardly tell" in note for note in document["notes"])


def test_one_site_of_a_finding_stands_for_itself(folder: Callable[..., list[Path]]) -> None:
    given = metrics(2)
    found = merged(folder(a=metrics(1, ("Edema",)), b=given))["findings"]["Fracture"]
    own = given["findings"]["Fracture"]["auroc"]
    assert [found["auroc"][key] for key in ("value", "low", "high")] == pytest.approx(list(own.values())[:3])
    assert found["random"] == nothing("one site only")
    assert Gate("", "Fracture.heterogeneity.q", "<=", 1).value({"findings": {"Fracture": found}}) == (
        None,
        "one site only",
    )


@pytest.mark.parametrize(("value", "low", "high", "direction"), [(1.0, 0.6, 1.0, "low"), (0.0, 0.0, 0.4, "high")])
def test_an_auroc_at_the_end_is_shown_and_left_out(
    value: float, low: float, high: float, direction: str, folder: Callable[..., list[Path]]
) -> None:
    perfect = metrics(3, ("Edema",))
    perfect["findings"]["Edema"]["auroc"] = {"value": value, "low": low, "high": high, "why": None}
    document = merged(folder(a=metrics(1, ("Edema",)), b=metrics(2, ("Edema",)), c=perfect))
    without = merged(folder(a=metrics(1, ("Edema",)), b=metrics(2, ("Edema",))))
    assert document["findings"]["Edema"]["auroc"] == without["findings"]["Edema"]["auroc"]
    assert document["findings"]["Edema"]["sites"]["c"]["weight"] is None
    [note] = [note for note in document["notes"] if "logit" in note]
    assert f"Edema at c is exactly {value:g} ({low:.3f}–{high:.3f})" in note
    assert note.endswith(f"may be too {direction}")
    assert "not pooled" in forest.text(document)


def test_a_finding_without_an_auroc_anywhere_is_undefined_and_said(folder: Callable[..., list[Path]]) -> None:
    given = [metrics(1), metrics(2)]
    for site in given:
        site["findings"]["Fracture"] = {"positives": 0, "negatives": 9, "auroc": nothing("no positives")}
    document = merged(folder(a=given[0], b=given[1]))
    assert document["findings"]["Fracture"]["auroc"] == nothing(merging.NONE)
    assert "Fracture has no AUROC at b (no positives)" in document["notes"]
    assert json.dumps(document, allow_nan=False)
    assert forest.text(document)
    assert merging.rows(document)[1][2] == f"n/a ({merging.NONE})"


def test_intervals_of_another_level_are_read_at_it(folder: Callable[..., list[Path]]) -> None:
    one, same, other = metrics(1), metrics(2), metrics(2, **{"interval.level": 0.8})
    assert same["findings"]["Edema"]["auroc"]["low"] < other["findings"]["Edema"]["auroc"]["low"]
    expected = merged(folder(a=one, b=same))["findings"]["Edema"]["auroc"]
    assert merged(folder(a=one, b=other))["findings"]["Edema"]["auroc"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"subject.networks": ["cd" * 32]},
            "the sites judged different models (by their weights, a: abababab; b: cdcd",
        ),
        ({"subject.networks": None}, "which model was judged is not known of b"),
        ({"selection.used": True}, "scans had a part in making the model at b"),
        ({"truth.ids_sha256": f"{1:064x}"}, "a and b name their scans alike"),
    ],
)
def test_what_must_not_be_missed_is_a_warning(
    change: dict[str, Any], said: str, folder: Callable[..., list[Path]]
) -> None:
    [warning] = merged(folder(a=metrics(1), b=metrics(2, **change)))["warnings"]
    assert said in warning
    assert merged(folder(a=metrics(1), b=metrics(2)))["warnings"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"selection.used": None}, "whether scans had a part in making the model is not known of b"),
        ({"patients": None}, "intervals take scans as independent, which may make them too narrow, at b"),
        ({"patients": 70}, "too narrow, at b"),
        ({"views": 30}, "views of a scan: a 1, b 30"),
        ({"unit.reduce": {"Edema": "max"}}, "do not reduce the scores"),
        ({"findings.Edema.positives": 4}, "is its weight: Edema at b 4"),
    ],
)
def test_what_a_reader_has_to_know_is_a_note(
    change: dict[str, Any], said: str, folder: Callable[..., list[Path]]
) -> None:
    plain = merged(folder(a=metrics(1), b=metrics(2)))["notes"]
    notes = merged(folder(a=metrics(1), b=metrics(2, **change)))["notes"]
    assert [note for note in notes if said in note]
    assert not [note for note in plain if said in note]


def test_sites_that_differ_by_more_than_chance_are_said(folder: Callable[..., list[Path]]) -> None:
    document = merged(folder(a=metrics(1, gap=0.3), b=metrics(2, gap=3.0)))
    assert document["findings"]["Edema"]["heterogeneity"]["p"] < 0.001
    assert any("differ by more than chance" in note and note.endswith("Edema, Fracture") for note in document["notes"])


def test_clustered_intervals_are_not_called_narrow(folder: Callable[..., list[Path]]) -> None:
    by_patient = metrics(2, patients=70, **{"interval.cluster": "patient"})
    assert not any("narrow" in note for note in merged(folder(a=metrics(1), b=by_patient))["notes"])


def same_ids_and_counts() -> dict[str, Any]:
    one = metrics(7, **{"truth.ids_sha256": f"{1:064x}"})
    for each in one["findings"].values():
        each["negatives"] = 101
    return one


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (metrics(1), metrics(2, **{"unit.by": "study"}), "a is judged by scan, b by study"),
        (metrics(1), {**metrics(1), "created": "later", "scans": 9}, "the same figures to the last digit"),
        (metrics(1), same_ids_and_counts(), "are of the same scans"),
        (
            metrics(1, **{"truth.fingerprint": "f", "truth.split": "valid"}),
            metrics(2, **{"truth.fingerprint": "f", "truth.split": "valid"}),
            "are of the same scans",
        ),
        (
            metrics(1, **{"truth.fingerprint": "f", "truth.split": "train"}),
            metrics(2, **{"truth.fingerprint": "f", "truth.split": "tune"}),
            "are of the same scans",
        ),
        (metrics(1, ("Edema",)), metrics(2, ("Fracture",)), "no finding is at two sites (a: Edema; b: Fracture)"),
    ],
)
def test_what_must_not_be_pooled_is_refused(
    one: Any, other: Any, message: str, folder: Callable[..., list[Path]]
) -> None:
    with pytest.raises(DataError) as refused:
        merged(folder(a=one, b=other))
    assert message in refused.value.what
    assert refused.value.fix


def test_two_splits_of_one_dataset_are_no_two_hospitals(folder: Callable[..., list[Path]]) -> None:
    parts = [metrics(k, **{"truth.fingerprint": "f", "truth.split": split}) for k, split in ((1, "valid"), (2, "test"))]
    [warning] = merged(folder(a=parts[0], b=parts[1]))["warnings"]
    assert warning == "a and b are parts of one dataset, and no two hospitals"


def test_files_from_before_the_new_fields_are_read(folder: Callable[..., list[Path]]) -> None:
    old = metrics(2)
    del old["subject"]["networks"], old["truth"]["ids_sha256"], old["views"]
    document = merged(folder(a=metrics(1), b=old))
    assert document["findings"]["Edema"]["heterogeneity"]["sites"] == 2
    assert [warning for warning in document["warnings"] if "not known of b" in warning]


def changed(path: str, value: Any) -> str:
    document = metrics(2)
    put(document, path, value)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is no metrics.json"),
        ("[]", "this is no metrics.json"),
        ("[" * 100_000, "this is no metrics.json"),
        ('{"schema_version": 2}', "this is no metrics.json"),
        ("\udc80", "this is no metrics.json"),
        (changed("schema_version", 1), "has schema 1, this damcli merges 2"),
        (changed("schema_version", True), "this is no metrics.json"),
        (changed("sites", {}), "this is a merged result"),
        (changed("findings", {}), "this is no metrics.json"),
        (changed("findings.Edema.auroc.value", math.nan), "this is no metrics.json"),
        (changed("findings.Edema.auroc.value", math.inf), "this is no metrics.json"),
        (changed("findings.Edema.auroc.value", "0.9"), "this is no metrics.json"),
        (changed("findings.Edema.auroc.value", 1.2), "this is no metrics.json"),
        (changed("findings.Edema.auroc.value", 0.01), "a figure has a value within its interval"),
        (changed("findings.Edema.auroc.low", None), "a figure has a value within its interval"),
        (changed("findings.Edema.auroc", nothing("")), "this is no metrics.json"),
        (changed("findings.Edema.auroc", {"value": 0.8, "low": 0.7, "high": 0.9, "why": None}), "not normal on the"),
        (changed("findings.Edema.auroc", {"value": 0.8, "low": 0.8, "high": 0.8, "why": None}), "it has no interval"),
        (changed("findings.Edema.auroc", {"value": 0.8, "low": 0.0, "high": 1.0, "why": None}), "it has no interval"),
        (changed("findings.Edema.positives", -1), "this is no metrics.json"),
        (changed("findings.Edema.positives", 1.5), "this is no metrics.json"),
        (changed("findings.Edema.positives", 10**40), "this is no metrics.json"),
        (changed("findings.\x1b[2JEdema", metrics(2)["findings"]["Edema"]), "this is no metrics.json"),
        (changed("findings." + "E" * 301, metrics(2)["findings"]["Edema"]), "this is no metrics.json"),
        (changed("interval.level", 1.0), "this is no metrics.json"),
        (changed("interval.level", 1e-300), "this is no metrics.json"),
        (changed("unit.by", "scans"), "this is no metrics.json"),
        (changed("subject.path", "\u202egpj.exe"), "this is no metrics.json"),
        (json.dumps(metrics(2)).replace('"positives": 40', '"positives": ' + "9" * 5000), "this is no metrics.json"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_in_words(text: str, message: str, folder: Callable[..., list[Path]]) -> None:
    paths = folder(a=metrics(1), b=text)
    with pytest.raises(DataError) as refused:
        sites.read(paths)
    assert message in refused.value.what
    assert refused.value.where == paths[1]
    assert len(str(refused.value)) < 700
    assert refused.value.what.isprintable()


def test_a_file_too_large_to_be_one_is_not_read(
    folder: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = folder(a=metrics(1), b=metrics(2))
    monkeypatch.setattr(sites, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="bytes"):
        sites.read(paths)


def test_files_that_are_not_there_or_named_twice(folder: Callable[..., list[Path]], tmp_path: Path) -> None:
    a, b = folder(a=metrics(1), b=metrics(2))
    (tmp_path / "link.json").symlink_to(a)
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ([a], "two sites or more"),
        ([], "two sites or more"),
        ([a, b, a], "named twice"),
        ([a, tmp_path / "link.json"], "named twice"),
        ([a, tmp_path / "absent.json"], "No such file"),
        ([a, tmp_path / "empty"], "No such file"),
    ):
        with pytest.raises(UsageError, match=message) as refused:
            sites.read(paths)
        assert refused.value.fix


def test_sites_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    paths = []
    for number, place in enumerate(("north/evaluation", "south/evaluation"), 1):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "metrics.json").write_text(json.dumps(metrics(number)))
        paths.append(tmp_path / place)
    assert [site.name for site in sites.read(paths)] == ["north", "south"]


def test_the_result_holds_no_paths_and_no_notes_of_the_sites(folder: Callable[..., list[Path]]) -> None:
    document = merged(folder(a=metrics(1), b=metrics(2)))
    text = json.dumps(document) + forest.text(document)
    assert "someone" not in text
    assert "a note that" not in text
    assert document["sites"]["a"]["subject"]["name"] == "chest.onnx"


def test_the_page_is_alone_and_shows_markup_as_text(folder: Callable[..., list[Path]], hostile: str) -> None:
    given = [metrics(k, ("Edema", hostile)) for k in (1, 2, 3)]
    document = merged(folder(a=given[0], b=given[1], c=copy.deepcopy(given[2])))
    text = forest.text(document)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('class="diamond') == 2 * 3  # fixed and random, of two findings and their mean
    assert text.count('class="dot') == 3 * 3
    names = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(names) == len(set(names))
    assert f"{document['findings']['Edema']['auroc']['low']:.3f}" in text


def test_a_square_is_as_large_as_its_weight_and_nothing_leaves_the_drawing() -> None:
    scale = forest.Forest(0.5, 1.0, 0.5)
    figure = {"value": 0.8, "low": 0.7, "high": 0.9, "why": None}
    wide = {"value": 0.6, "low": 0.01, "high": 0.999, "why": None}
    row = {"auroc": figure, "random": wide, "prediction": wide}
    sides = [
        float(scale.site(row, {"auroc": figure, "weight": weight}, "t", "n").split("z")[0].rsplit("h-", 1)[1])
        for weight in (None, 0.25, 1.0)
    ]
    assert sides == [4.0, 10.0, 16.0]
    drawn = scale.pooled(row, "random", "t", "n")
    assert f"M{scale.MARGIN:.1f} 11" in drawn  # cut at the end of the axis
    assert "another hospital 0.010 to 0.999" in drawn
