"""`damcli info`: the machine, the models and recipes at hand, the runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from damcli import __version__, console, recipes
from damcli.commands import leaderboard, options
from damcli.errors import DamcliError

app = typer.Typer(help="The machine, the models and recipes at hand, the runs.", rich_markup_mode=None)


def machine() -> Iterator[tuple[str, str]]:
    """Yield (what, finding) for everything that decides what damcli can do on this machine."""
    yield "damcli", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "cores", str(os.cpu_count())
    yield "free disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB"
    yield from _torch()
    yield from _onnxruntime()
    yield "h5py", _version("h5py") or "not installed: HDF5 files cannot be read"
    yield "imagecodecs", _version("imagecodecs") or "not installed: pip install 'damcli[codecs]' reads more, and faster"
    yield "ray", _version("ray") or "not installed: --engine ray needs pip install 'damcli[ray]'"
    yield "images besides DICOM", "PNG and TIFF of 8 and 16 bits, JPEG, PGM and PPM"


def _torch() -> Iterator[tuple[str, str]]:
    import torch

    yield "torch", torch.__version__
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            yield f"GPU {number}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {bf16}"
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield "GPU", f"none found ({built}): training and prediction run on the CPU"


def _onnxruntime() -> Iterator[tuple[str, str]]:
    import onnxruntime

    from damcli.bundle import openvino, providers

    yield "onnxruntime", onnxruntime.__version__
    # The list names what was built in, not what works here: only a session that was started tells.
    yield "providers built in", ", ".join(onnxruntime.get_available_providers())
    yield "prediction runs on", providers.tried()
    yield "TensorRT", _version("tensorrt") or "not installed: --device tensorrt needs pip install tensorrt"
    found = f"{_version('openvino')}, {openvino.precision()} here" if openvino.installed() else ""
    yield "openvino", found or "not installed: pip install 'damcli[openvino]' predicts faster on a CPU"
    packages = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(packages) == 2:
        yield (
            "problem",
            (
                "onnxruntime and onnxruntime-gpu are both installed, which silently loses CUDA: "
                "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
            ),
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@app.command()
def doctor(quiet: options.Quiet = False, as_json: options.Json = False) -> None:
    """What this machine can do: GPU, providers, and each DICOM transfer syntax tried on a sample.

    Example: damcli info doctor
    """
    from damcli.dicom import pixels, samples

    options.apply(quiet=quiet, json=as_json)
    found = list(machine())
    columns = ["name", "uid", "decoder", "sample"]
    rows = [(name, uid, decoder, samples.try_syntax(uid)) for name, uid, decoder in pixels.supported()]
    if as_json:
        syntaxes = [dict(zip(columns, row, strict=True)) for row in rows]
        console.emit_json({"machine": dict(found), "transfer_syntaxes": syntaxes})
    console.table("Machine", ["what", "found"], found)
    shown = [[name, uid, decoder or "none", sample] for name, uid, decoder, sample in rows]
    console.table("DICOM transfer syntaxes", ["name", "UID", "decoder", "sample"], shown)
    console.next_step("damcli demo")


@app.command()
def models(quiet: options.Quiet = False, as_json: options.Json = False) -> None:
    """The recipes at hand and the models under models/.

    Example: damcli info models
    """
    options.apply(quiet=quiet, json=as_json)
    known = [_recipe(name) for name in recipes.names()]
    exported = [_model(path) for path in sorted(Path("models").glob("*.onnx"))]
    if as_json:
        console.emit_json({"recipes": known, "models": exported})
    lines = [[row["recipe"], ", ".join(row["forms"]), row["description"]] for row in known]
    console.table("Recipes", ["recipe", "other forms", "what it is"], lines)
    columns = ["model", "findings", "size", "members", "problem"]
    rows = [[str(row.get(column, "")) for column in columns] for row in exported]
    console.table("Models under models/", columns, rows or [["none", "", "", "", ""]])
    console.next_step("damcli train --recipe NAME")


def _recipe(name: str) -> dict[str, Any]:
    return {
        "recipe": name,
        "forms": [form.removeprefix(f"{name}/") for form in recipes.forms(name)],
        "description": recipes.load(name).values.get("description", ""),
        "card": str(recipes.find(name).with_name("README.md")),
    }


def _model(path: Path) -> dict[str, Any]:
    from damcli.bundle.runtime import read_info

    try:
        info = read_info(path)
    except DamcliError as problem:
        return {"model": str(path), "problem": problem.what}
    return {
        "model": str(path),
        "findings": ", ".join(info.findings),
        "size": info.contract.size,
        "members": len(info.members),
    }


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the runs lie.")] = Path("runs"),
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """A leaderboard of runs: how each was trained, its evaluated AUROC with interval, and what is not finished.

    Example: damcli info runs
    """
    options.apply(quiet=quiet, json=as_json)
    found = leaderboard.rows(folder)
    if as_json:
        console.emit_json({"runs": found})
    columns = ["run", "loss", "backbone", "dataset", "split", "mean AUROC", "95 % interval", "remark"]
    drawn = [line for row in found for line in _leaders(row)]
    console.table(f"Runs under {folder}", columns, drawn)
    if not found:
        console.note(f"there are no runs under {folder}")
    console.next_step("damcli evaluate RUN" if found else "damcli train DATASET")


def _leaders(row: leaderboard.Row, indent: str = "") -> Iterator[list[str]]:
    """Yield the line of a run, and below it, set in, those of its members."""
    name = f"{indent}{Path(row['run']).name}" if indent else row["run"]
    figures = ["", ""]
    if row.get("auroc") is not None:
        figures = [f"{row['auroc']:.3f}", "" if row["low"] is None else f"{row['low']:.3f}–{row['high']:.3f}"]
    yield [name, *(row.get(column, "") for column in ("loss", "backbone", "dataset", "split")), *figures, row["remark"]]
    for member in row.get("members", ()):
        yield from _leaders(member, indent + "  ")
