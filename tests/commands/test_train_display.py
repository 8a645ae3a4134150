"""Training as it is shown: a live table on a terminal, plain lines in a pipe, nothing with -q; and what comes back."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from damcli import console
from damcli.commands.train import board, display
from damcli.data.store import Dataset
from damcli.metrics import components
from damcli.report import plots
from damcli.training import events
from damcli.training.observation import Observation

RUN = Path("runs/a")
FINDINGS = ("Edema", "Pleural Effusion [right]")
STARTED = events.Started(RUN, "cpu", "32", 1, 40, 10, 5, None)
STAGE = events.StageStarted(2, "aucm", "pesg", 3, 4, FINDINGS)
DONE = events.EpochDone(2, 1, 3, 0.25, {"Edema": 0.875, FINDINGS[1]: float("nan")}, 0.875, True, 100.0)
FINISHED = events.Finished(RUN, 1, {"Edema": components([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])}, 1.0)


def step(number: int, epoch: int = 1, scans: int = 16) -> events.Step:
    saddle = {"a": [0.125, 0.25], "b": [0.375, 0.5], "alpha": [0.625, 0.75]}
    two = [0.0, 0.0]
    observed = Observation(0.0625, 1.0, [0.03125, float("nan")], saddle, two, two, [1, 1], two, [False, False])
    return events.Step(2, epoch, number, scans, 0.05, observed)


def one_run() -> list[events.Event]:
    steps = [step(number) for number in range(1, 5)]
    return [STARTED, STAGE, *steps, events.Warned("α sat at 0"), events.Scored(10), DONE, FINISHED]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal, 100 columns wide, in the place of stderr; not in a fixture, after which pytest puts its own."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(console, "state", console.State())
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def cells(text: str, finding: str) -> list[str]:
    """The figures of the last row that is drawn for a finding."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in plain.splitlines() if line.strip().startswith(finding)][-1].split(finding)[1].split()


def test_a_terminal_shows_the_live_table_and_stdout_stays_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = terminal(monkeypatch)
    assert display.draw(iter(one_run())) is FINISHED
    shown = screen.getvalue()
    assert cells(shown, "Edema") == ["0.031", "0.125", "0.375", "0.625", "0.875", "0.875"]
    assert cells(shown, FINDINGS[1]) == ["n/a", "0.250", "0.500", "0.750", "n/a", "n/a"]
    assert "stage 2: aucm by pesg, epoch 1/3, step 4/4, loss 0.0625, learning rate 0.05" in shown
    assert "5/5" in shown  # the bar: four steps and one batch that was scored
    assert "warning: α sat at 0" in shown
    assert shown.rindex("warning: α sat at 0") < shown.rindex("tune AUROC")
    assert capsys.readouterr().out == ""


def test_a_pipe_gets_plain_lines_and_no_table(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(console, "state", console.State())
    assert display.draw(iter(one_run())) is FINISHED
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    lines = err.splitlines()
    assert lines[0].startswith("runs/a: 40 scans to train on, 10 of other patients")
    assert [line.split(" batches")[0] for line in lines if line.startswith("training: ")] == [
        f"training: {done}/5 ({done * 20}%)" for done in range(1, 6)
    ]
    assert "stage 2, epoch 1/3: loss 0.2500, tune AUROC 0.875" in err
    assert "n/a" in err


def test_quiet_says_warnings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    console.state.quiet = True
    assert display.draw(iter(one_run())) is FINISHED
    assert screen.getvalue() == "warning: α sat at 0\n"


def test_several_runs_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(console, "state", console.State())
    end = events.MembersFinished(Path("runs"))
    scored = [events.FoldScoring(RUN, 0, 70, 2), events.Scored(64), events.Scored(6)]
    stopped = [events.MemberStarted(RUN, 2, 2, "fold 1"), *one_run()[:4], events.MemberStopped(RUN, "pruned", "behind")]
    both = [events.MemberStarted(RUN, 1, 2, "fold 0"), *one_run(), *scored, *stopped, end]
    assert display.draw(iter(both)) is end
    err = capsys.readouterr().err
    assert "runs/a: 1 of 2, fold 0" in err
    assert "scoring: 2/2 (100%) batches" in err
    assert "runs/a: pruned, behind" in err


@pytest.mark.parametrize(("best", "rest"), [(None, []), (1, [events.Scored(10), FINISHED])])
def test_a_run_out_of_time_ends_with_its_best_epoch_if_it_has_one(best, rest, monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "state", console.State())
    late = events.TimeIsUp(RUN, "stage 2 after 1 epochs and 2 steps", best)
    assert display.draw(iter([*one_run()[:4], late, *rest])) is (rest[-1] if rest else late)
    assert "the time limit has passed at stage 2 after 1 epochs and 2 steps" in capsys.readouterr().err


def test_images_per_second_are_of_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 1.0, 60.0, 61.0])
    monkeypatch.setattr(board.time, "monotonic", lambda: next(clock))
    shown = board.Board()
    for event in (STAGE, step(1), step(2), step(3)):
        shown.take(event)
    assert shown.rate == 32  # two times 16 scans in the second between the first and the third
    shown.take(DONE)
    shown.take(step(1, epoch=2))
    assert shown.rate == 32  # the minute of scoring does not count
    shown.take(step(2, epoch=2, scans=8))
    assert shown.rate == 8


def test_the_pictures_are_of_the_runs_own_scores_whatever_their_order(toy: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(toy)
    rows = dataset.rows("train")[[7, 3, 20, 11, 50, 40, 31]]
    scores = np.linspace(0.1, 0.9, len(rows), dtype=np.float32)
    pl.DataFrame({"path": dataset.ids(rows), "Fracture": scores}).write_parquet(tmp_path / "scores-tune.parquet")
    epoch = '{"event": "epoch", "stage": 1, "epoch": 1, "loss": 1, "tune_auroc": {"Fracture": 1}, "mean_tune_auroc": 1}'
    (tmp_path / "metrics.jsonl").write_text(epoch + "\n")
    display.pictures(tmp_path, dataset)
    assert (tmp_path / "curves.png").is_file()
    plots.histogram({"Fracture": (dataset.truth(rows)[:, 1], scores)}, tmp_path / "expected.png")
    assert (tmp_path / "histogram.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
