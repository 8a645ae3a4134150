"""`damcli train`: a dataset and a recipe become a run."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from damcli import config, console, project, recipes
from damcli.commands import options
from damcli.config import Layer, Resolved
from damcli.errors import DataError, UsageError
from damcli.recipes import LossName, Recipe

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.training.events import Event, Finished, Scored, Step

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
            finished = _draw(events)
    except (KeyboardInterrupt, SystemExit):
        if (run / "config.toml").is_file():
            console.next_step(f"damcli train --resume {run}")
        raise
    plots.curves(run / "metrics.jsonl", run / "curves.png")
    return finished


def _draw(events: Iterator[Event]) -> Finished:
    from damcli.training.events import Finished, Started

    for event in events:
        _say(event)
        if isinstance(event, Started):
            last: list[Event] = []
            for _ in console.track(_batches(events, last), event.batches, "training", unit="batches"):
                pass
            assert isinstance(last[0], Finished)
            return last[0]
    raise AssertionError("training ended before it started")


def _batches(events: Iterator[Event], last: list[Event]) -> Iterator[Step | Scored]:
    """Yield what a progress bar counts, say the rest, and leave the last event in `last`."""
    from damcli.training.events import Scored, Step

    for event in events:
        if isinstance(event, Step | Scored):
            yield event
        else:
            _say(event)
            last[:] = [event]


def _say(event: Event) -> None:
    from damcli.training.events import Boundary, EpochDone, Noted, PrecisionChosen, StageStarted, Started, Warned

    match event:
        case Warned(text):
            console.warn(text)
        case Noted(text):
            console.note(text)
        case PrecisionChosen(precision, _, reason):
            console.note(f"precision: {precision} ({reason})")
        case Started():
            again = f", going on at {event.resumed_at}" if event.resumed_at else ""
            console.note(
                f"{event.run}: {event.train_scans} scans to train on, {event.tune_scans} of other patients to choose "
                f"the epoch by, {event.device}, precision {event.precision}{again}"
            )
        case StageStarted():
            console.note(
                f"stage {event.stage}: {event.loss} by {event.optimizer}, {event.epochs} epochs of {event.steps} steps"
            )
        case Boundary():
            far = f", ‖v − v_ref‖ {event.distance:.4g}" if event.distance is not None else ""
            if event.next_lr is None:
                console.note(f"stage {event.stage} ends after step {event.step}: learning rate {event.lr:.4g}{far}")
            else:
                rates = f"{event.lr:.4g} → {event.next_lr:.4g}"
                console.note(f"stage {event.stage}, after step {event.step}: learning rate {rates}{far}")
        case EpochDone():
            each = ", ".join(f"{name} {_figure(value)}" for name, value in event.aurocs.items())
            console.note(
                f"stage {event.stage}, epoch {event.epoch}/{event.epochs}: loss {event.loss:.4f}, tune AUROC "
                f"{_figure(event.mean_auroc)} ({each}), {event.scans_per_second:.3g} scans/s"
                + (", best so far" if event.best else "")
            )


def _figure(value: float) -> str:
    return "n/a" if value != value else f"{value:.3f}"


def check(settings: Resolved[Recipe], dataset: Path, run: Path, device: str) -> dict[str, Any]:
    """Return what a run would do, everything checked that can be without training; writes nothing."""
    from damcli.data.store import Dataset
    from damcli.deepauc.network import Classifier
    from damcli.training import folder, launch, plan

    recipe, opened = settings.value, Dataset.open(dataset)
    launch.accelerator(device)
    folder.refuse_used(run)
    planned = plan.make(recipe, opened)
    for text in plan.warnings(planned, recipe, opened):
        console.warn(text)
    network = Classifier(
        recipe.backbone,
        len(opened.info.findings),
        recipe.weights,
        in_chans=recipe.in_chans,
        activation=recipe.activation,
    )
    return {
        "dataset": str(dataset),
        "run": str(run),
        "backbone": recipe.backbone,
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "train_scans": len(planned.train),
        "tune_scans": len(planned.tune),
        "stages": [
            {"stage": s.number, "loss": s.stage.loss, "epochs": s.stage.epochs, "steps_per_epoch": len(s.sampler)}
            for s in planned.stages
        ],
        "findings": [_counts(opened, planned, k) for k in range(len(opened.info.findings))],
    }


def _counts(dataset: Dataset, planned: Any, k: int) -> dict[str, Any]:
    targets, truth = dataset.targets(planned.train)[:, k], dataset.truth(planned.tune)[:, k]
    return {
        "finding": dataset.info.findings[k],
        "train_positives": int((targets >= 0.5).sum()),
        "train_negatives": int((targets < 0.5).sum()),
        "tune_positives": int((truth == 1).sum()),
        "tune_negatives": int((truth == 0).sum()),
    }


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
        return _show_plan(check(settings, dataset, run, device))
    finished = train(settings, dataset, run, recipe_name=name, device=device, resume=resume is not None)
    _show_result(finished)
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


def _show_plan(plan: dict[str, Any]) -> None:
    if console.state.json:
        console.emit_json(plan)
    lists = {"stages", "findings"}
    console.table("Plan (nothing was written)", ["", ""], [[k, str(v)] for k, v in plan.items() if k not in lists])
    for key in sorted(lists, reverse=True):
        console.table(key.capitalize(), list(plan[key][0]), [[str(v) for v in row.values()] for row in plan[key]])


def _show_result(finished: Finished) -> None:
    from damcli.metrics import estimate
    from damcli.report import tables

    found = {name: estimate([part]) for name, part in finished.aurocs.items()}
    mean = estimate(list(finished.aurocs.values()))
    if console.state.json:
        figures = {name: tables.document(one) for name, one in found.items()}
        console.emit_json(
            {
                "run": str(finished.run),
                "best_epoch": finished.best_epoch,
                "tune_auroc": figures,
                "mean_tune_auroc": tables.document(mean),
            }
        )
    title = f"Best epoch {finished.best_epoch}, on the tune part, which chose it (so these figures flatter)"
    rows = [
        tables.auroc_row(name, part.positives, part.negatives, found[name]) for name, part in finished.aurocs.items()
    ]
    console.table(title, tables.AUROC_COLUMNS, [*rows, tables.mean_row("mean", mean)])
    console.result(str(finished.run))
