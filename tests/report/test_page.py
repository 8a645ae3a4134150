"""The page of an evaluation as text: whole, alone in its file, and with no figure without its interval or reason."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damcli.report import caveats, page, tables
from damcli.report.drawings import Curves
from damcli.report.page import Extras
from damcli.report.svg import document as drawing

FIVE = ("Edema", "Enlarged Cardiomediastinum", "Fracture", "Pleural Effusion", "Hernie größer")


class Read(HTMLParser):
    """The page's text, and its elements with their attributes."""

    VOID = ("meta", "br", "img", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def figures(part: Any) -> Iterator[dict[str, Any]]:
    """Everything with a value and an interval, however deep it lies."""
    if isinstance(part, dict):
        if {"value", "low", "high"} <= part.keys():
            yield part
        else:
            for each in part.values():
                yield from figures(each)
    elif isinstance(part, list):
        for each in part:
            yield from figures(each)


@pytest.mark.parametrize("full", [True, False])
def test_the_page_is_whole_and_asks_for_nothing(example: Callable[..., Any], tmp_path: Path, full: bool) -> None:
    page.write(tmp_path / "report.html", *example(FIVE, full=full))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = Read(text)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert text.lstrip().startswith("<!doctype html>")
    assert not {"script", "link", "iframe", "object", "form", "base", "use"} & {name for name, _ in read.elements}
    assert not re.search(r"https?:|url\(|@import|javascript:|\son\w+=", text)
    for _, attributes in read.elements:
        assert (attributes.get("src") or "data:").startswith("data:image/png;base64,") or "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(each["content"] for each in read.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_the_same_figures_are_the_same_file(example: Callable[..., Any]) -> None:
    made = example(FIVE)
    assert page.text(*made) == page.text(*made)


def test_every_link_and_label_leads_somewhere_and_no_id_is_there_twice(example: Callable[..., Any]) -> None:
    read = Read(page.text(*example(FIVE)))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = [(attributes["href"] or "")[1:] for attributes in read.all("a")]
    for name in ("aria-labelledby", "aria-describedby"):
        wanted += [attributes[name] or "" for _, attributes in read.elements if name in attributes]
    assert set(wanted) <= set(ids)


def test_every_picture_says_what_it_shows(example: Callable[..., Any]) -> None:
    read = Read(page.text(*example(FIVE)))
    assert len(read.all("img")) == 7
    assert all(attributes.get("alt") for attributes in read.all("img"))
    for attributes in read.all("svg"):
        assert attributes.get("aria-hidden") == "true" or (
            attributes["role"] == "img" and attributes["aria-labelledby"] and attributes["aria-describedby"]
        )


def test_no_figure_stands_without_its_interval_or_its_reason(example: Callable[..., Any]) -> None:
    document = example(FIVE).document
    read = Read(page.text(*example(FIVE)))
    shown = 0
    for each in figures({key: part for key, part in document.items() if key != "gates"}):
        if each["value"] is None:
            assert f"n/a: {each['why']}" in read.text
            continue
        plain = f"{tables.three(each['value'])} {tables.three(each['low'])}–{tables.three(each['high'])}"
        signed = (
            f"{tables.difference(each['value'])} {tables.difference(each['low'])} to {tables.difference(each['high'])}"
        )
        assert plain in read.text or signed in read.text
        shown += 1
    assert shown > 100


def test_a_difference_without_variance_says_so(example: Callable[..., Any]) -> None:
    made = example(("Edema",))
    none = {"value": 0.0, "low": None, "high": None, "why": "no variance: both order every pair alike"}
    compared = made.document["comparison"] | {"mean": {"difference": none, "p": None}}
    read = Read(page.text(made.document | {"comparison": compared}, made.curves, made.extras))
    assert "0.000 no variance: both order every pair alike" in read.text


def test_names_are_text_and_no_markup(example: Callable[..., Any], hostile: str) -> None:
    made = example(("Edema", hostile))
    notes = [*made.document["notes"], hostile]
    extras = Extras(
        made.extras.course, [{"kind": "remark", "text": hostile, "leak": False}], (hostile,), {hostile: hostile}
    )
    document = made.document | {"notes": notes, "subject": {"kind": "run", "path": hostile}}
    text = page.text(document, made.curves, extras)
    read = Read(text)
    assert "script" not in {name for name, _ in read.elements}
    assert "<script" not in text
    assert read.text.count(hostile) > 30
    # In the names of drawings too, once and not twice over.
    assert f"ROC curve of {hostile}" in read.text


def test_no_scan_is_named(example: Callable[..., Any]) -> None:
    made = example(FIVE)
    assert any("scan-id-77" in concern.get("scans", ()) for concern in made.extras.concerns)
    assert "scan-id-77" not in page.text(*made)


def test_only_what_was_asked_for_has_a_section(example: Callable[..., Any]) -> None:
    every = {"figures", "curves", "data", "provenance", "caveats"}
    asked = {"operating", "calibration", "comparison", "readers", "subgroups", "gates", "training", "gallery"}
    for full, wanted in ((False, every), (True, every | asked)):
        read = Read(page.text(*example(("Edema",), full=full)))
        assert {attributes["id"] for attributes in read.all("section")} == wanted
        assert {(attributes["href"] or "")[1:] for attributes in read.all("a")} >= wanted


@pytest.mark.parametrize(
    ("used", "warning"),
    [(True, "These figures are flattered."), (None, "These figures may be flattered."), (False, "")],
)
def test_the_selection_warning_comes_before_the_first_figure(
    example: Callable[..., Any], used: bool | None, warning: str
) -> None:
    made = example(("Edema",), used=used)
    text = Read(page.text(*made)).text
    before = text[: text.index("95 % interval")]
    assert made.document["selection"]["note"] in before
    assert ("flattered" in before) == bool(warning)
    assert warning in before


def test_where_nothing_is_defined_the_reason_is_the_headline(example: Callable[..., Any]) -> None:
    text = Read(page.text(*example(("Fracture",)))).text
    assert "n/a mean AUROC: no positives" in text
    assert "No ROC and precision–recall curves: no positives." in text


def test_a_note_that_stands_in_its_section_is_not_repeated(example: Callable[..., Any]) -> None:
    made = example(("Edema",))
    own = made.document["subgroups"][0]["notes"][0]
    notes = [*made.document["notes"], own, f"selection: {made.document['selection']['note']}"]
    text = Read(page.text(made.document | {"notes": notes}, made.curves, made.extras)).text
    assert text.count(own) == 1
    assert text.count(made.document["selection"]["note"]) == 1
    assert text.count(made.document["notes"][0]) == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [(None, "this run has no metrics.jsonl"), ("{", "line 1 is no record of a run"), ("", "no epoch of this run")],
)
def test_a_course_that_cannot_be_drawn_is_said(
    example: Callable[..., Any], tmp_path: Path, lines: str | None, said: str
) -> None:
    if lines is not None:
        (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    made = example(("Edema",))
    assert f"No curves: {said}" in Read(page.text(made.document, made.curves, Extras(tmp_path / "metrics.jsonl"))).text


def test_the_audit_that_was_not_done_is_not_one_that_found_nothing(example: Callable[..., Any]) -> None:
    made = example(("Edema",), full=False)
    assert "No audit of these scans is known" in Read(page.text(made.document, made.curves, Extras())).text
    assert "found neither leaks" in Read(page.text(made.document, made.curves, Extras(concerns=[]))).text


def test_a_finding_of_a_million_scans_adds_less_than_200_kb(example: Callable[..., Any]) -> None:
    made = example(("Edema",), full=False)
    rng = np.random.default_rng(0)
    targets = (rng.random(1_000_000) < 0.1).astype(float)
    curves = Curves.of(targets, rng.normal(size=1_000_000) + targets)
    added = len(page.text(made.document, {"Edema": curves}, Extras())) - len(page.text(*made))
    assert added < 200_000


def test_the_page_takes_what_judge_returns(tmp_path: Path) -> None:
    from damcli.report.evaluation import Evaluation, Selection, Truth
    from damcli.report.judgement import judge
    from damcli.report.method import Method

    rng = np.random.default_rng(0)
    raw = (rng.random((80, 2)) < [0.4, 0.0]).astype(float)
    scores = rng.normal(size=(80, 2)) + raw
    truth = Truth.of_labels(Path("labels.csv"), [f"scan{n}" for n in range(80)], ("Edema", "Fracture"), raw, None)
    evaluation = Evaluation("scores", Path("s.csv"), truth, scores, Selection(False, "not used"))
    document = judge(evaluation, Method.of(evaluation, draws=200)).document()
    curves = {name: Curves.of(raw[:, k], scores[:, k]) for k, name in enumerate(truth.findings)}
    page.write(tmp_path / "report.html", document, curves)
    text = Read((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert tables.three(document["findings"]["Edema"]["auroc"]["value"]) in text
    assert "scan7" not in text


def claims(document: dict[str, Any], **others: bool) -> str:
    return "\n".join(f"{caveat.claim}: {caveat.why}" for caveat in caveats.of(document, **others))


def test_caveats_are_those_that_apply(example: Callable[..., Any]) -> None:
    bare = example(("Edema",), full=False, used=False).document | {"failed": 0}
    few = claims(bare)
    assert "AUROC is an accuracy" in few
    assert "used on patients" in few
    assert "elsewhere" in few
    assert "probability of the finding" in few
    for absent in (
        "threshold keeps",
        "fair",
        "radiologists",
        "p is large",
        "gate",
        "gallery",
        "all intervals hold",
        "seen",
    ):
        assert absent not in few
    full = example(FIVE, used=True).document
    many = claims(full, leaks=True, gallery=True)
    for present in (
        "scans that it has not seen", "not the patient", "every scan gets a score", "Anything about Fracture",
        "the finding (of Fracture)", "Of 4 such intervals 0.2 miss", "threshold keeps", "p is large", "radiologists",
        "sex male", "gate that is met", "gallery", "doubtful cases", "Enlarged Cardiomediastinum 7",
    ):  # fmt: skip
        assert present in many


@pytest.mark.parametrize(
    ("patients", "cluster", "narrow"),
    [(600, None, False), (560, None, True), (None, None, True), (560, "patient", False)],
)
def test_intervals_that_are_too_narrow_are_said_to_be(
    example: Callable[..., Any], patients: int | None, cluster: str | None, narrow: bool
) -> None:
    document = example(("Edema",), full=False).document
    document = document | {"patients": patients, "interval": document["interval"] | {"cluster": cluster}}
    assert ("intervals are wide enough" in claims(document)) == narrow


def test_small_classes_are_named(example: Callable[..., Any]) -> None:
    document = example(("Edema",), n=60, full=False).document
    finding = document["findings"]["Edema"]
    assert finding["positives"] < 30
    assert f"Much about Edema: It has fewer than 30 positives or negatives (Edema {finding['positives']} and" in claims(
        document
    )
    finding = finding | {"positives": 30, "negatives": 30}
    assert "Much about" not in claims(document | {"findings": {"Edema": finding}})


def test_a_drawing_escapes_its_title() -> None:
    assert "<b>" not in drawing(1, 1, "", "<b>", "<b>", "n")


def test_writing_needs_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys; from damcli.report import page, drawings\n"
        "import jinja2\n"
        "assert not {'torch', 'matplotlib', 'rich', 'typer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
