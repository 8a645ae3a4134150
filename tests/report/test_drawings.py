"""Drawings as SVG: they show what the figures hold, all of it and no more, at any number of scans."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from damcli.metrics import auroc, roc_curve
from damcli.metrics.calibration import Bin
from damcli.metrics.ranking import Ranking, precision_on, roc_on
from damcli.report import drawings, plots, svg
from damcli.report.drawings import Band, Curves, Scale

TITLE = "<b>\"größer\" & 'kleiner'"


def drawn(n: int, seed: int = 0, rounded: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.2).astype(float)
    return targets, (1 / (1 + np.exp(-rng.normal(size=n) - targets))).round(rounded)


def points(path: str) -> np.ndarray:
    """The places that a path of M, l, h and v goes through; NaN where it begins anew."""
    at, found = np.zeros(2), []
    for command, numbers in re.findall(r"([Mlhv])([^Mlhv]*)", path):
        step = [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", numbers)]
        if command == "M" and found:
            found.append([np.nan, np.nan])
        moved = {"h": (step[0], 0.0), "v": (0.0, step[0])}.get(command) or (step[0], step[1])
        at = np.array(moved) if command == "M" else at + moved
        found.append(at)
    return np.array(found)


@given(
    st.lists(
        st.tuples(st.floats(-500, 500), st.floats(-500, 500)) | st.just((np.nan, 0.0)), min_size=2, max_size=40
    ).filter(lambda line: line[0][0] == line[0][0])
)
def test_a_path_goes_through_every_point_and_breaks_where_there_is_none(line: list[tuple[float, float]]) -> None:
    x, y = np.array(line).T
    shown = points(svg.path(x, y))
    wanted = np.stack([x, y], axis=1)[np.isfinite(x)].round(1)
    wanted = wanted[np.append(True, np.abs(np.diff(wanted, axis=0)).sum(axis=1) > 0)]
    for place in wanted:
        assert np.nanmin(np.abs(shown - place).sum(axis=1)) < 1e-6
    assert np.isnan(shown[:, 0]).sum() == sum(
        np.isnan(x[k]) and not np.isnan(x[k + 1]) for k in range(len(x) - 1)
    )  # a gap for every run of missing points between others


@pytest.mark.parametrize("seed", [0, 1])
def test_a_thinned_line_covers_what_the_whole_line_covers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.sort(rng.random(200_000)) * 250
    y = 100 + np.cumsum(rng.normal(size=len(x))) / 5
    kept = svg.thinned(x, y)
    assert len(kept) < 4 * 501
    whole, thin = np.floor(x / 0.5), np.floor(x[kept] / 0.5)
    for column in np.unique(whole)[::7]:
        every, few = y[whole == column], y[kept][thin == column]
        assert (every.min(), every.max(), every[0], every[-1]) == (few.min(), few.max(), few[0], few[-1])


def test_a_curve_of_a_million_scans_is_as_small_as_one_of_thousands_and_looks_the_same() -> None:
    targets, scores = drawn(1_000_000)
    curves = Curves.of(targets, scores)
    text = drawings.roc(curves, "ROC", "text", "a")
    assert len(text) < 12_000
    assert len(drawings.precision_recall(curves, 0.2, "PR", "text", "b")) < 40_000
    line = points(re.search(r'class="line c0" d="([^"]*)"', text)[1])
    left, right, top, bottom = 42, 290, 28, 248
    area = np.trapezoid((bottom - line[:, 1]) / (bottom - top), (line[:, 0] - left) / (right - left))
    assert area == pytest.approx(auroc(targets, scores), abs=1e-3)


@pytest.mark.parametrize("rounded", [1, 2, 9])
def test_the_precision_recall_line_has_the_area_of_average_precision(rounded: int) -> None:
    targets, scores = drawn(500, 3, rounded)
    curves = Curves.of(targets, scores)
    widths = np.diff(curves.recall, prepend=0)
    assert (widths > 0).all()
    assert curves.recall[-1] == 1
    assert widths @ curves.precision == pytest.approx(average_precision_score(targets, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(targets, scores)
    known = {(round(r, 9), round(p, 9)) for r, p in zip(recall, precision, strict=True)}
    assert {(round(r, 9), round(p, 9)) for r, p in zip(curves.recall, curves.precision, strict=True)} <= known


@pytest.mark.parametrize("rounded", [1, 9])
def test_the_numbers_beside_the_drawings_are_those_of_the_figures(rounded: int) -> None:
    targets, scores = drawn(400, 5, rounded)
    grid = np.linspace(0, 1, 101)
    band = Band(grid, grid / 2, 0.5 + grid / 2)
    curves = Curves.of(targets, scores, roc_band=band, precision_band=band)
    ranking = Ranking.of(targets, scores)
    for figure, rows in ((roc_on, curves.roc_numbers()), (precision_on, curves.precision_numbers())):
        at, values, low, high = (np.array(column) for column in zip(*rows, strict=True))
        np.testing.assert_allclose(values, figure(at)(ranking, ranking.counts()))
        np.testing.assert_allclose(low, at / 2)
        np.testing.assert_allclose(high, 0.5 + at / 2)
    assert Curves.of(targets, scores).roc_numbers()[0][2:] == (None, None)


def test_unknown_targets_are_in_no_drawing() -> None:
    targets, scores = drawn(300)
    targets[::3] = np.nan
    known = np.isfinite(targets)
    with_, without = Curves.of(targets, scores), Curves.of(targets[known], scores[known])
    for draw in (drawings.roc, drawings.histogram):
        assert draw(with_, "t", "d", "n") == draw(without, "t", "d", "n")


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        (np.array([0.2, 0.3, 0.6, 0.7]), (0, 1)),
        (np.array([-3.0, 0.1, 4.0, 9.0]), (-3, 9)),
        (np.array([5.0, 5.0, 5.0, 5.0]), (5, 6)),
        (np.array([1e12, 1e12, 1e12, 1e12]), (1e12, 1.001e12)),
    ],
)
def test_the_histogram_holds_every_scan_once_whatever_the_scale(scores: np.ndarray, ends: tuple[float, float]) -> None:
    edges, positives, negatives = Curves.of(np.array([0, 1, 0, 1]), scores).histogram
    assert (edges[0], edges[-1]) == pytest.approx(ends)
    assert (np.diff(edges) > 0).all()
    assert (positives.sum(), negatives.sum()) == (2, 2)
    assert "nan" not in drawings.histogram(Curves.of(np.array([0, 1, 0, 1]), scores), "t", "d", "n")


def test_a_missing_class_is_not_drawn() -> None:
    curves = Curves.of(np.zeros(50), np.linspace(0, 1, 50))
    text = drawings.histogram(curves, "t", "d", "n")
    assert 'class="filled' in text
    assert 'class="outline' not in text
    assert "nan" not in text
    assert Curves.of(np.array([]), np.array([])).histogram.positives.sum() == 0


def every_drawing(tmp_path: Path) -> list[str]:
    targets, scores = drawn(200)
    grid = np.linspace(0, 1, 101)
    band = Band(grid, grid / 2, 0.5 + grid / 2)
    bins = {"as scored": [Bin(0.2, 0.3, 0.1, 0.5, 20), Bin(0.7, 0.6, 0.4, 0.8, 20)], "after platt": []}
    curves = Curves.of(targets, scores, roc_band=band, precision_band=band)
    record = {"event": "epoch", "stage": 1, "epoch": 1, "loss": 0.5, "tune_auroc": {TITLE: None, "B": 0.7}}
    (tmp_path / "m.jsonl").write_text(json.dumps({**record, "mean_tune_auroc": 0.7}), encoding="utf-8")
    return [
        drawings.roc(curves, TITLE, TITLE, "a", [(0.1, 0.5)], [(0.2, 0.6)]),
        drawings.precision_recall(curves, 0.2, TITLE, TITLE, "b"),
        drawings.histogram(curves, TITLE, TITLE, "c"),
        drawings.reliability(bins, TITLE, TITLE, "d"),
        Scale.of([]).interval({"value": 0.7, "low": 0.6, "high": 0.8}, TITLE, "e"),
        *(panel.drawing for panel in drawings.training(plots.read_course(tmp_path / "m.jsonl"), "f")),
    ]

    return json.dumps({**record, "mean_tune_auroc": 0.7}) + "\n"


def test_every_drawing_is_whole_xml_with_a_title_a_description_and_ids_of_its_own(tmp_path: Path) -> None:
    ids: list[str] = []
    for text in every_drawing(tmp_path):
        root = ElementTree.fromstring(text)
        assert root.get("role") == "img"
        title, description = root[0], root[1]
        assert (title.tag, description.tag) == ("title", "desc")
        assert (title.get("id"), description.get("id")) == (root.get("aria-labelledby"), root.get("aria-describedby"))
        assert title.text
        assert description.text
        assert not re.search(r'"[^"]*nan[^"]*"', text)
        ids += [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))


def test_the_same_figures_are_the_same_text(tmp_path: Path) -> None:
    assert every_drawing(tmp_path) == every_drawing(tmp_path)


def test_an_interval_lies_on_its_scale() -> None:
    scale = Scale.of([{"value": 0.8, "low": 0.31, "high": 0.93}, {"value": None, "low": None, "high": None}])
    assert (scale.low, scale.high) == (0.3, 1.0)
    text = scale.interval({"value": 0.65, "low": 0.3, "high": 1.0}, "AUROC", "a")
    assert 'd="M14.0 11H146.0"' in text
    assert "M80 11m" in text
    assert scale.interval({"value": None, "low": None, "high": None}, "AUROC", "a") == ""
    without = scale.interval({"value": 0.65, "low": None, "high": None}, "AUROC", "a")
    assert "whisker" not in without
    for most, ends in ((0.004, 0.01), (0.05, 0.05), (0.051, 0.1), (0.7, 1.0)):
        assert Scale.of([{"value": 0.0, "low": -most, "high": most / 2}], signed=True) == Scale(-ends, ends, 0.0)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_numbers_within_the_axis(low: float, span: float) -> None:
    found = svg.ticks(low, low + span)
    assert 2 <= len(found) <= 6
    slack = 1e-6 * span + 1e-9
    assert low - slack <= found[0]
    assert found[-1] <= low + span + slack
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-3)
    if span >= 1:
        assert all(value == int(value) for value in svg.ticks(0, span, whole=True))


def test_the_roc_line_is_the_roc_curve() -> None:
    targets, scores = drawn(60)
    line = points(re.search(r'class="line c0" d="([^"]*)"', drawings.roc(Curves.of(targets, scores), "t", "d", "n"))[1])
    curve = roc_curve(targets, scores)
    np.testing.assert_allclose((line[:, 0] - 42) / 248, curve.false_positive_rate, atol=3e-4)
    np.testing.assert_allclose((248 - line[:, 1]) / 220, curve.true_positive_rate, atol=3e-4)
