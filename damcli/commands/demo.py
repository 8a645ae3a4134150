"""`damcli demo`: the whole chain on phantoms that it draws, each step by the command line it prints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from damcli import console, files
from damcli.commands import options
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from damcli.report.judgement import Judgement

ARMS = {"ce": "CE", "aucm": "AUC-M"}
# CE trains in the first stage only. A balanced epoch of the second takes about two of the first, so that with three
# more epochs both arms take the same number of steps.
EXTRA = {"ce": ["--set", "stage1.epochs=11"], "aucm": []}
# The network sees 96 × 96 pixels: enough for these findings, and the whole tour stays within its three minutes.
SIZE = 96


@dataclass(frozen=True)
class Folder:
    """Where the demo's things lie: a project folder, so that every command works in it with no path at all."""

    root: Path

    @property
    def marker(self) -> Path:
        """The figures; its presence also says that the folder is the demo's."""
        return self.root / "demo.json"

    @property
    def drawn(self) -> dict[str, Path]:
        """What is drawn, and kept with `--keep` only."""
        from damcli.data.phantoms import TREE

        return {"tree": self.root / TREE, "scans": self.root / "scans", "labels": self.root / "scans.csv"}

    @property
    def made(self) -> dict[str, Path]:
        """What the commands make of it, in the order in which they do."""
        return {
            "dataset": self.root / "data" / "chexpert",
            **{loss: self.root / "runs" / loss for loss in ARMS},
            "model": self.root / "models" / "demo.onnx",
            "card": self.root / "models" / "demo.onnx.md",
            "scores": self.root / "scores.csv",
            "evaluation": self.root / "evaluation",
            "picture": self.root / "roc.png",
        }


def steps(folder: Folder, seed: int) -> Iterator[list[str]]:
    """Yield the command lines that follow the drawing, each as arguments of `damcli`."""
    drawn, made = ({name: str(path) for name, path in paths.items()} for paths in (folder.drawn, folder.made))
    dataset = made["dataset"]
    yield ["prepare", "chexpert", drawn["tree"], "-o", dataset, "--size", str(SIZE), "--seed", str(seed)]
    for loss in ARMS:
        yield [
            "train",
            dataset,
            "--recipe",
            "demo",
            "--loss",
            loss,
            *EXTRA[loss],
            "--seed",
            str(seed),
            "-o",
            made[loss],
        ]
    for loss in ARMS:
        yield ["evaluate", made[loss], dataset, "--split", "valid"]
    yield ["export", made["aucm"], "-o", made["model"]]
    yield ["predict", drawn["scans"], "--model", made["model"], "--export", "csv", "-o", made["scores"]]
    yield ["evaluate", made["scores"], drawn["labels"], "-o", made["evaluation"]]


def draw(folder: Folder, patients: int, seed: int) -> Iterator[int]:
    """Draw the scans, yielding their number patient by patient; what an earlier demo left here is replaced.

    Raises `UsageError` for a folder that holds something but is no demo's.
    """
    from damcli.data.phantoms import write_chexpert

    if not folder.marker.is_file() and any(path.name != ".lock" for path in folder.root.glob("*")):
        raise UsageError("this folder is not empty, and no demo made it", where=folder.root, fix="name another with -o")
    files.write_json(folder.marker, {"finished": False, "seed": seed, "patients": patients})
    for path in (*folder.drawn.values(), *folder.made.values()):
        _remove(path)
    yield from write_chexpert(folder.root, patients, seed)


def compare(folder: Folder) -> dict[str, Judgement]:
    """Return both arms' figures on the valid patients, from the scores that `evaluate` wrote."""
    from damcli.commands.evaluate import judge

    made = folder.made
    return {
        name: judge(made[loss] / "evaluation-valid" / "scores-valid.parquet", made["dataset"], split="valid")
        for loss, name in ARMS.items()
    }


def rows(arms: dict[str, Judgement]) -> list[list[str]]:
    """Return the closing table's rows: finding, n+, n−, then AUROC with its interval for each arm; the mean last."""
    first = next(iter(arms.values()))
    sides = [[row[3:] for row in arm.rows()] for arm in arms.values()]
    return [
        [*row[:3], *(cell for side in beside for cell in side)]
        for row, *beside in zip(first.rows(), *sides, strict=True)
    ]


def command(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.")] = Path("demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the drawn scans too.")] = False,
    patients: Annotated[int, typer.Option(min=40, help="How many to draw.")] = 800,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw phantom chest X-rays and run the whole chain on them: prepare, train, evaluate, export, predict.

    Trains the same network twice, by cross-entropy (CE) and by two-stage AUC maximization (AUC-M). Needs no network,
    no GPU and no data; takes less than three minutes on two cores. An earlier demo in the same folder is replaced. The
    drawn scans (about 100 MB) are removed at the end unless --keep is given; all that was made of them stays.

    Example: damcli demo --keep
    """
    options.apply(quiet, verbose, as_json)
    start, folder, seed = time.monotonic(), Folder(output), seed or 0
    with files.only_writer(folder.root):
        console.note(f"drawing {patients} patients (seed {seed}) into {folder.root}")
        for _ in console.track(draw(folder, patients, seed), patients, "draw", unit="patients"):
            pass
        for arguments in steps(folder, seed):
            _run(context, arguments, quiet, verbose)
        options.apply(quiet, verbose, as_json)
        _finish(folder, keep, {"seed": seed, "patients": patients}, start)


def _run(context: typer.Context, arguments: Sequence[str], quiet: bool, verbose: bool) -> None:
    """Run one command line as the shell would, its result on stderr: stdout belongs to the demo's own."""
    console.note(f"\n$ {shlex.join(['damcli', *arguments])}")
    flags = ["-q"] if quiet else ["-v"] if verbose else []
    with _aside(quiet):
        root = context.find_root().command
        code = root.main([*arguments, *flags], prog_name="damcli", standalone_mode=False)
    if code:
        raise DataError(f"damcli {arguments[0]} ended with exit code {code}", where=shlex.join(["damcli", *arguments]))


@contextmanager
def _aside(quiet: bool) -> Iterator[None]:
    """Send stdout to stderr, or nowhere."""
    if quiet:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    else:
        with redirect_stdout(sys.stderr):
            yield


def _finish(folder: Folder, keep: bool, facts: dict[str, Any], start: float) -> None:
    from damcli.report import plots, tables

    arms = compare(folder)
    truth = next(iter(arms.values())).evaluation.truth
    made = folder.made
    plots.roc({name: arm.lines() for name, arm in arms.items()}, made["picture"])
    if keep:
        made = folder.drawn | made
    else:
        for path in folder.drawn.values():
            _remove(path)
    document = {
        "finished": True,
        **facts,
        "seconds": round(time.monotonic() - start, 1),
        "arms": {name: arm.document() for name, arm in arms.items()},
        "made": {name: str(path) for name, path in (made | {"figures": folder.marker}).items()},
    }
    files.write_json(folder.marker, document)
    if console.state.json:
        console.emit_json(document)
    title = f"AUROC on {len(truth.ids)} scans of {len(set(truth.patients or ()))} patients not trained on"
    columns = [column for name in ARMS.values() for column in (f"{name} AUROC", tables.AUROC_COLUMNS[-1])]
    console.table(title, [*tables.AUROC_COLUMNS[:3], *columns], rows(arms))
    for name, path in document["made"].items():
        console.result(f"{name:<12}{path}")
    console.note(
        f"done in {document['seconds']:.0f} s" + ("" if keep else "; the drawn scans are removed (see --keep)")
    )
    console.next_step("damcli prepare --help, to do the same with your own scans")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
