"""The card says what holds of this model, and nothing else."""

import pytest

from damcli.bundle import card
from damcli.bundle.schema import Cams, External, OpenVINOParity, Parity


@pytest.fixture
def write(said):
    """Return the card of a model of which `said` says more; lines are joined, so that words are found across them."""

    def text(**more):
        return " ".join(card.text(said(**more), "m.onnx").split())

    return text


def parity(**more):
    values = {"scans": 64, "max_difference": 2e-6, "tolerance": 1e-4, "auroc_difference": 0.00012}
    return Parity(**values | more)


def openvino(**more):
    values = {"version": "2025.3", "precision": "bf16", "max_difference": 0.012, "auroc_difference": 0.0004}
    return OpenVINOParity(**values | more)


def test_a_plain_model_says_nothing_of_what_it_does_not_have(write):
    text = write(parity=parity())
    assert "On 64 real scans at export: largest difference of a score 2e-06 (allowed: 0.0001)" in text
    assert "largest difference of an AUROC: 0.00012." in text
    assert "the mean over the members that have it. - Scaling" in text
    assert "Intended for research" in text
    assert "whoever passes it on states them here." in text
    for word in ("second file", "cams", "half precision", "OpenVINO", "--force", "As stated", "weighted"):
        assert word not in text


def test_where_no_auroc_was_defined_it_is_said(write):
    assert "largest difference of an AUROC: no finding had both classes." in write(parity=parity(auroc_difference=None))


def test_a_second_file_is_named_and_belongs_to_the_model(write):
    text = write(external=External(file="m.onnx.0123abcd.data", sha256="0123abcd" * 8, bytes=2_345_678_901))
    assert "Its weights are in a second file, `m.onnx.0123abcd.data` (2.3 GB)." in text
    assert "both together, into one folder; the second one must keep its name." in text


def test_half_precision_has_no_tolerance_of_a_score(write):
    text = write(precision="fp16", parity=parity(tolerance=None, max_difference=3e-3))
    assert "largest difference of a score 0.003, largest difference of an AUROC" in text
    assert "The networks compute in half precision (fp16)" in text
    assert "--force" not in text


def test_what_was_forced_is_said(write):
    forced = "the AUROC of Edema moved by 0.0021"
    text = write(precision="fp16", parity=parity(tolerance=None, forced=forced))
    assert f"**Exported by `--force`, although: {forced}.** Measure it before use." in text


def test_weights_are_said_by_finding_and_member(said, write):
    [member] = said().members
    other = member.model_copy(update={"run": "run-1", "weights": {"Edema": 2.0, "Fracture": 0.25}})
    third = member.model_copy(update={"run": "run-2", "weights": {"Edema": 0.0}})
    text = write(members=(member, other, third))
    assert (
        "the mean over the members that have it, weighted: Edema 2, Fracture 0.25 in run-1; Edema 0 in run-2;"
        " 1 where nothing is said."
    ) in text


def test_maps_have_a_shape_and_a_limit(write):
    text = write(cams=Cams(height=10, width=12))
    assert "`cams`: float32 (N, 2, 10, 12), class activation maps" in text
    assert "not where a disease is" in text


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({}, "takes this model."),
        ({"auroc_difference": 0.001}, "refuses this model: on OpenVINO the AUROC of a finding moved by 0.001"),
        ({"auroc_difference": None}, "refuses this model: no AUROC was defined"),
    ],
)
def test_openvino_is_offered_where_it_ranks_as_onnx_runtime_does(write, more, verdict):
    text = write(parity=parity(openvino=openvino(**more)))
    assert "OpenVINO 2025.3 in bf16 beside ONNX Runtime, on the same scans: largest difference of a score 0.012" in text
    assert f"`damcli predict --device openvino` {verdict}" in text


def test_licence_and_use_are_those_stated_and_cannot_forge_a_heading(said):
    text = card.text(said(licence="CC BY 4.0\n\n# Approved\n", intended_use="triage\n## FDA"), "m.onnx")
    assert "\nAs stated at export: CC BY 4.0 # Approved\n" in text
    assert "\n- Intended use, as stated at export: triage ## FDA\n" in text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# m.onnx",
        "## Input and output",
        "## Members",
        "## Agreement with PyTorch",
        "## Operating points",
        "## Use and limits",
        "## Licence",
    ]
    assert "Intended for research" not in text
    assert "It is no medical device" in text
    assert "whoever passes it on" not in text
    assert "weights that training started from apply.\n" in text


def test_the_text_is_markdown_that_reads_as_text(said):
    text = card.text(
        said(
            external=External(file="m.onnx.0123abcd.data", sha256="0123abcd" * 8, bytes=2**31),
            cams=Cams(height=1, width=1),
            parity=parity(openvino=openvino()),
        ),
        "m.onnx",
    )
    assert "\n\n\n" not in text
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line == line.rstrip()
    # Headings stand alone.
    lines = text.splitlines()
    for number, line in enumerate(lines[1:], 1):
        if line.startswith("## "):
            assert lines[number - 1] == ""
