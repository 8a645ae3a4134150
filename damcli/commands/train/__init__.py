"""`damcli train`: a dataset and a recipe become a run."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from damcli import config, console, project, recipes
from damcli.commands import options
from damcli.commands.train import display, rehearsal
from damcli.config import Layer, Resolved
from damcli.errors import DataError, UsageError
from damcli.recipes import LossName, Recipe

if TYPE_CHECKING:
    from damcli.training.events import Finished

DEFAULT_RECIPE = "chexpert-small"
# For the CPU, read when torch is loaded. Large buffers lie in huge pages: fewer page faults. Threads wait for one
# another for microseconds, then let go of the core: as fast as the default where the machine is ours alone, several
# times as fast where it is shared.
BEFORE_TORCH = {"THP_MEM_ALLOC_ENABLE": "1", "GOMP_SPINCOUNT": "2000"}


def resolve(
    recipe: str = DEFAULT_RECIPE,
    loss: LossName | None = None,
    config_file: Path | None = None,
    assignments: Sequence[str] = (),
    **flags: Any,
) -> Resolved[Recipe]:
    """Return the settings of a run with their origins: recipe < config file < environment < assignments < flags.

    `flags` are settings of the recipe by name, None where they are not given. Raises `UsageError`.
    """
    layers = [recipes.load(recipe)]
    layers += [config.file_layer(config_file)] if config_file else []
    layers += [config.environment_layer(Recipe), *config.set_layers(assignments)]
    layers += [Layer(f"--{name}", {name: value}) for name, value in flags.items() if value is not None]
    if loss:
        layers.append(_loss_layer(loss, config.resolve(Recipe, layers).value))
    return config.resolve(Recipe, layers)


def _loss_layer(loss: LossName, under: Recipe) -> Layer:
    """Say what `--loss` means: the second stage's loss, or for a loss that needs no second stage, all epochs in one."""
    if loss in ("ce", "focal"):
        epochs = under.stage1.epochs + under.stage2.epochs
        return Layer("--loss", {"stage1": {"loss": loss, "epochs": epochs}, "stage2": {"epochs": 0}})
    if not under.stage2.epochs:
        raise UsageError(f"--loss {loss} is for the second stage, which has no epochs", fix="--set stage2.epochs=2")
    return Layer("--loss", {"stage2": {"loss": loss, "optimizer": "pesg"}})


def train(
    settings: Resolved[Recipe],
    dataset: Path,
    run: Path,
    *,
    recipe_name: str = DEFAULT_RECIPE,
    device: str = "auto",
    resume: bool = False,
) -> Finished:
    """Train into the folder `run` and show it as it goes; with `resume` the run's own settings count."""
    for name, value in BEFORE_TORCH.items():
        os.environ.setdefault(name, value)
    from damcli.data.store import Dataset
    from damcli.report import plots
    from damcli.training import loop

    opened = Dataset.open(dataset)
    keywords: dict[str, Any] = {"origins": settings.origins, "recipe_name": recipe_name, "device": device}
    try:
        with closing(loop.train(settings.value, opened, run, resume=resume, **keywords)) as events:
            finished = display.draw(events)
    except (KeyboardInterrupt, SystemExit):
        if (run / "config.toml").is_file():
            console.next_step(f"damcli train --resume {run}")
        raise
    plots.curves(run / "metrics.jsonl", run / "curves.png")
    return finished


def command(
    dataset: Annotated[Path | None, typer.Argument(help="A prepared folder; default: the newest under data/.")] = None,
    recipe: Annotated[str | None, typer.Option(help=f"A name or a .toml file; default: {DEFAULT_RECIPE}.")] = None,
    loss: Annotated[str | None, typer.Option(help="aucm, aucs (second stage); ce, focal (one stage).")] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights to start from: safetensors or a state dict.")] = None,
    pretrained: Annotated[bool | None, typer.Option("--pretrained", help="Let timm download weights.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto (timed at the start), 32 or bf16.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=V", help="Any setting.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings in a TOML file.")] = None,
    seed: options.Seed = None,
    output: options.Output = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    device: options.Device = "auto",
    show_config: Annotated[bool, typer.Option("--show-config", help="Show each setting and its origin.")] = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a network on a prepared dataset, in two stages by default.

    Settings: recipe < --config < DAMCLI_… < --set < flags.

    Example: damcli train data/chexpert --loss aucm -o runs/aucm
    """
    options.apply(quiet, verbose, as_json)
    options.check_device(device)
    flags: dict[str, Any] = {
        "backbone": backbone,
        "weights": str(weights) if weights else None,
        "pretrained": pretrained,
        "precision": precision,
        "seed": seed,
    }
    if resume:
        given = [name for name, value in (("loss", loss), ("set", assignments), ("config", config_file)) if value]
        flags |= {"recipe": recipe, "output": output}
        given += [name for name, value in flags.items() if value is not None]
        settings, name, run, dataset = _settings_of(resume, given, dataset)
    else:
        if loss not in (None, "aucm", "aucs", "ce", "focal"):
            raise UsageError(f"there is no loss {loss!r}", where="--loss", fix="choose aucm, aucs, ce or focal")
        recipe = recipe or DEFAULT_RECIPE
        settings = resolve(recipe, loss, config_file, assignments or (), **flags)  # type: ignore[arg-type]
        name = Path(recipe).stem
        run = output or Path("runs", f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}")
    if show_config:
        return _show(settings)
    if dataset is None:
        dataset = project.newest_dataset()
        console.note(f"dataset: {dataset}, the newest under data/")
    if loss in ("ce", "focal"):
        stage = settings.value.stage1
        console.note(f"--loss {loss}: one stage of {stage.epochs} epochs, the two stages' together")
    if verbose:
        for key, value, origin in settings.lines():
            console.note(f"{key} = {value}  ({origin})")
    if dry_run:
        return rehearsal.show(rehearsal.check(settings, dataset, run, device))
    finished = train(settings, dataset, run, recipe_name=name, device=device, resume=resume is not None)
    display.result(finished)
    console.next_step(f"damcli evaluate {run} {dataset}")


def _settings_of(run: Path, given: Sequence[str], dataset: Path | None) -> tuple[Resolved[Recipe], str, Path, Path]:
    from damcli.training import folder

    if given:
        raise UsageError(
            f"a run that is resumed keeps its settings: --{given[0]} cannot be given with --resume",
            fix="drop it, or train anew into another folder",
        )
    info = folder.read_run(run)
    dataset = dataset or info.dataset
    if not (dataset / "dataset.json").is_file():
        raise DataError(
            "the dataset of this run is not there", where=dataset, fix=f"name it: damcli train DATASET --resume {run}"
        )
    origins = {key: str(run / folder.CONFIG) for key, _ in config.flatten(info.recipe.model_dump(mode="json"))}
    return Resolved(info.recipe, origins), info.facts.recipe_name, run, dataset


def _show(settings: Resolved[Recipe]) -> None:
    if console.state.json:
        console.emit_json({key: {"value": value, "origin": origin} for key, value, origin in settings.lines()})
    rows = [[key, str(value), origin] for key, value, origin in settings.lines()]
    console.table("", ["setting", "value", "origin"], rows)
