"""stdout carries only the result; everything else is stderr; nothing is cut for a pipe."""

import json

import pytest

from damcli import console
from damcli.errors import DataError


@pytest.fixture(autouse=True)
def _plain_state(monkeypatch):
    monkeypatch.setattr(console, "state", console.State())


def test_a_table_goes_whole_to_stdout_and_the_rest_to_stderr(capsys):
    console.note("working")
    console.table("Results", ["finding", "AUROC"], [["Pleural Effusion [right]", "0.912"], ["x" * 200, "n/a"]])
    console.next_step("damcli export")
    out, err = capsys.readouterr()
    assert "Pleural Effusion [right]" in out
    assert "x" * 200 in out
    assert "0.912" in out
    assert err.splitlines() == ["working", "next: damcli export"]


def test_quiet_silences_notes_and_progress_but_never_warnings_and_errors(capsys):
    console.state.quiet = True
    console.note("working")
    assert list(console.track(range(3), 3, "drawing")) == [0, 1, 2]
    console.warn("two scans failed")
    console.error(DataError("the table is empty", where="a.csv", fix="add rows"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "warning: two scans failed\nerror: the table is empty\n  where: a.csv\n  fix: add rows\n"


def test_json_is_the_only_thing_on_stdout(capsys):
    console.state.json = True
    console.result("a path")
    console.table("t", ["a"], [["b"]])
    console.emit_json({"auroc": None, "finding": "Ödem"})
    assert json.loads(capsys.readouterr().out) == {"auroc": None, "finding": "Ödem"}
    with pytest.raises(ValueError, match="JSON"):
        console.emit_json({"auroc": float("nan")})


def test_without_a_terminal_progress_is_a_plain_line_every_five_percent(capsys):
    assert list(console.track(range(200), 200, "decoding")) == list(range(200))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("decoding: 10/200 (5%) scans, ")
    assert lines[-1].startswith("decoding: 200/200 (100%) scans, ")
    assert "\x1b" not in "".join(lines)
