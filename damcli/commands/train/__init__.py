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
from damcli.commands.train import display, rehearsal, several
from damcli.commands.train.several import Asked
from damcli.config import Layer, Resolved
from damcli.errors import DataError, UsageError
from damcli.recipes import LossName, Recipe

if TYPE_CHECKING:
    from damcli.commands.train.display import End
    from damcli.training.world import World

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
    layers += [Layer(f"--{_flag(name)}", {name: value}) for name, value in flags.items() if value is not None]
    if loss:
        layers.append(_loss_layer(loss, config.resolve(Recipe, layers).value))
    return config.resolve(Recipe, layers)


def _flag(setting: str) -> str:
    return setting.replace("_", "-")


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
    resume: bool = False,
    **machine: Any,
) -> End:
    """Train into the folder `run` and show it as it goes; with `resume` the run's own settings count.

    `machine` are `device`, `devices`, `nodes`, `fold` and `time_limit`, as in `loop.train`.
    """
    _before_torch()
    from damcli.data.store import Dataset
    from damcli.training import loop
    from damcli.training.events import Finished

    opened = Dataset.open(dataset)
    keywords: dict[str, Any] = {"origins": settings.origins, "recipe_name": recipe_name, **machine}
    try:
        with closing(loop.train(settings.value, opened, run, resume=resume, **keywords)) as events:
            end = display.draw(events)
    except (KeyboardInterrupt, SystemExit):
        if (run / "config.toml").is_file():
            console.next_step(f"damcli train --resume {run}")
        raise
    if isinstance(end, Finished) and not console.state.follows:
        display.pictures(run, opened)
    return end


def _before_torch() -> None:
    for name, value in BEFORE_TORCH.items():
        os.environ.setdefault(name, value)


def command(
    dataset: Annotated[Path | None, typer.Argument(help="A prepared folder; default: the newest under data/.")] = None,
    recipe: Annotated[str | None, typer.Option(help=f"NAME, NAME/FORM, a .toml; default: {DEFAULT_RECIPE}.")] = None,
    loss: Annotated[str | None, typer.Option(help="aucm, aucs (second stage); ce, focal (one stage).")] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights to start from: safetensors or a state dict.")] = None,
    pretrained: Annotated[bool | None, typer.Option("--pretrained", help="Let timm download weights.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto (timed at the start), 32, bf16 or fp16.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=V", help="Any setting.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings in a TOML file.")] = None,
    fold: Annotated[int | None, typer.Option("--fold", metavar="K", help="Hold out fold K of the dataset.")] = None,
    folds: Annotated[
        str | None, typer.Option("--folds", metavar="all", help="A run for each fold in turn, and scores out of fold.")
    ] = None,
    tune: Annotated[
        str | None, typer.Option("--tune", metavar="A=1,2 B=…", help="Try each combination; the tune part decides.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", min=1, help="With --tune: N drawn by Optuna, also of A=1..9.")
    ] = None,
    seed: options.Seed = None,
    output: options.Output = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    device: options.Device = "auto",
    devices: Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes, each with a GPU.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="M", min=1, help="Machines, with N processes each.")] = None,
    time_limit: Annotated[str | None, typer.Option(metavar="TIME", help="Stop, resumable, after 2h or so.")] = None,
    checkpoint_every: Annotated[str | None, typer.Option(metavar="TIME", help="10 min, or 500 steps.")] = None,
    monitor: Annotated[str | None, typer.Option(metavar="FINDING", help="Whose AUROC chooses the epoch.")] = None,
    compiled: Annotated[bool | None, typer.Option("--compile", help="torch.compile, for long runs.")] = None,
    metadata: Annotated[str | None, typer.Option(metavar="A,B", help="Columns for a second network.")] = None,
    metadata_weight: Annotated[float | None, typer.Option(metavar="W", help="Of its score in the mixture.")] = None,
    allow_leaks: Annotated[bool, typer.Option("--allow-leaks", help="Metadata that tell of the label too.")] = False,
    log: Annotated[
        list[str] | None, typer.Option("--log", metavar="NAME", help="tensorboard, wandb or mlflow; repeatable.")
    ] = None,
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
    from damcli.training import loggers, world

    options.apply(quiet, verbose, as_json)
    options.check_device(device)
    place = world.detect(devices, nodes)
    if place.rank:
        console.follow(place.rank)
    flags: dict[str, Any] = {
        "backbone": backbone,
        "weights": str(weights) if weights else None,
        "pretrained": pretrained,
        "precision": precision,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
        "monitor": monitor,
        "compile": compiled,
        "metadata": _metadata(metadata, metadata_weight, allow_leaks),
    }
    if resume:
        given = [name for name, value in (("loss", loss), ("set", assignments), ("config", config_file)) if value]
        flags |= {"recipe": recipe, "output": output, "fold": fold, "folds": folds, "tune": tune, "trials": trials}
        given += [name for name, value in flags.items() if value is not None]
        settings, name, run, dataset = _settings_of(resume, given, dataset)
    else:
        if loss not in (None, "aucm", "aucs", "ce", "focal"):
            raise UsageError(f"there is no loss {loss!r}", where="--loss", fix="choose aucm, aucs, ce or focal")
        recipe = recipe or DEFAULT_RECIPE
        settings = resolve(recipe, loss, config_file, assignments or (), **flags)  # type: ignore[arg-type]
        if not settings.value.metadata.columns and (allow_leaks or metadata_weight is not None):
            flag = "--allow-leaks" if allow_leaks else "--metadata-weight"
            raise UsageError(f"{flag} is for --metadata, which is not given", fix="leave it out, or --metadata age,sex")
        name = recipes.label(recipe)
        run = output or _run_name(name, place)
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
    loggers.check(log or ())
    asked = Asked(fold, folds, tune, trials)
    machine: dict[str, Any] = {"device": device, "devices": devices, "nodes": nodes, "time_limit": _seconds(time_limit)}
    machine["log"] = log or ()
    again = resume is not None
    if several.are_in(run) if resume else several.wanted(asked, settings.value):
        _before_torch()
        return several.run(settings, dataset, run, asked, recipe_name=name, resume=again, dry_run=dry_run, **machine)
    if dry_run:
        return rehearsal.show(rehearsal.check(settings, dataset, run, device, fold, place.processes))
    end = train(settings, dataset, run, recipe_name=name, resume=again, fold=fold, **machine)
    display.result(end)
    done = type(end).__name__ == "Finished"
    console.next_step(f"damcli evaluate {run} {dataset}" if done else f"damcli train --resume {run}")


def _metadata(columns: str | None, weight: float | None, allow_leaks: bool) -> dict[str, Any] | None:
    """Return the flags' settings of the metadata network, None where none is given."""
    given: dict[str, Any] = {} if columns is None else {"columns": [name.strip() for name in columns.split(",")]}
    given |= {} if weight is None else {"weight": weight}
    return given | ({"allow_leaks": True} if allow_leaks else {}) or None


def _seconds(time_limit: str | None) -> float | None:
    if time_limit is None:
        return None
    try:
        unit, many = config.interval(time_limit)
    except ValueError as error:
        raise UsageError(str(error), where="--time-limit") from error
    if unit == "steps":
        raise UsageError("a time limit is no number of steps", where="--time-limit", fix="--time-limit 2h")
    return many


def _run_name(recipe: str, place: World) -> Path:
    """Return a name by the clock. The processes that Fabric starts for a run find it where the first one left it."""
    if place.launcher or place.nodes > 1:
        raise UsageError("these processes cannot agree on the name of their run", fix="give it: -o runs/NAME")
    name = Path("runs", f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{recipe}")
    return Path(os.environ.setdefault("DAMCLI_RUN", str(name))) if place.processes > 1 else name


def _settings_of(run: Path, given: Sequence[str], dataset: Path | None) -> tuple[Resolved[Recipe], str, Path, Path]:
    from damcli.training import folder, group

    if given:
        raise UsageError(
            f"a run that is resumed keeps its settings: --{_flag(given[0])} cannot be given with --resume",
            fix="drop it, or train anew into another folder",
        )
    if several.are_in(run):
        made = group.read(run)
        recipe, name, own = made.recipe, made.group.recipe_name, made.dataset
    else:
        info = folder.read_run(run)
        recipe, name, own = info.recipe, info.facts.recipe_name, info.dataset
    dataset = dataset or own
    if not (dataset / "dataset.json").is_file():
        raise DataError(
            "the dataset of this run is not there", where=dataset, fix=f"name it: damcli train DATASET --resume {run}"
        )
    origins = {key: str(run / folder.CONFIG) for key, _ in config.flatten(recipe.model_dump(mode="json"))}
    return Resolved(recipe, origins), name, run, dataset


def _show(settings: Resolved[Recipe]) -> None:
    if console.state.json:
        console.emit_json({key: {"value": value, "origin": origin} for key, value, origin in settings.lines()})
    rows = [[key, str(value), origin] for key, value, origin in settings.lines()]
    console.table("", ["setting", "value", "origin"], rows)
