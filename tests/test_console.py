"""stdout carries only the result; everything else is stderr; nothing is cut for a pipe."""

import io
import json
import re
import sys

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


def test_without_a_known_end_there_is_a_line_every_so_often(capsys, monkeypatch):
    monkeypatch.setattr(console, "HEARTBEAT_SECONDS", 0.0)
    assert list(console.track("abc", None, "reading", unit="files")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" files,")[0] for line in lines] == ["reading: 1", "reading: 2", "reading: 3"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, **environment):
    """Draw a bar with a line above it on a terminal, with a note and a result on the way; return what it got."""
    from rich.text import Text

    for name, value in {"CI": "", "TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    for done in console.track(range(10), 10, "drawing", above=lambda: Text("the state [of things]")):
        if done == 5:
            console.note("a note [of mine]")
            console.result("a result")
    return screen.getvalue()


def test_a_terminal_gets_a_bar_below_what_is_said_and_stdout_only_the_result(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = drawn(monkeypatch)
    assert "10/10" in shown
    assert "a note [of mine]" in shown
    assert shown.rindex("a note [of mine]") < shown.rindex("the state [of things]") < shown.rindex("10/10")
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", shown), "in colour"
    assert capsys.readouterr().out == "a result\n"


def test_no_color_is_respected(monkeypatch):
    shown = drawn(monkeypatch, NO_COLOR="1")
    assert "10/10" in shown
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-9])[0-9;]*m", shown)


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_nothing_moves_in_ci_and_on_a_dumb_terminal(monkeypatch, name, value):
    shown = drawn(monkeypatch, **{name: value})
    assert "\x1b" not in shown
    assert "drawing: 10/10 (100%) scans" in shown
