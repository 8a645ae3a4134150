"""`damcli evaluate`: AUROC per finding, with intervals, of a run, a model or a table of scores."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from damcli import console, files, project
from damcli.commands import options, views
from damcli.commands.evaluate import asked, judging, merging, saving, subjects
from damcli.commands.evaluate.judging import judge
from damcli.commands.evaluate.showing import show
from damcli.commands.evaluate.subjects import evaluate
from damcli.errors import UsageError

__all__ = ["command", "evaluate", "judge", "show"]


def _default_dataset(subject: Path) -> Path:
    from damcli.training import group
    from damcli.training.checkpoint import read_run

    if subjects.kind_of(subject) == "folds":
        dataset = group.read(subject).dataset
        console.note(f"took the dataset {dataset}, which the members were trained on")
        return dataset
    if subjects.kind_of(subject) == "run":
        dataset = read_run(subject).dataset
        if subjects.is_own(subject, dataset):
            with suppress(ValueError):
                dataset = dataset.relative_to(Path.cwd())
            console.note(f"took the dataset {dataset}, which the run was trained on")
            return dataset
    newest = project.newest_dataset()
    console.note(f"took the dataset {newest}, the newest")
    return newest


def _default_folder(kind: str, subject: Path, on: Path, split: str, tta: int | None, by: str) -> Path:
    if kind not in ("run", "folds"):
        return Path("evaluation")
    # Figures on another dataset, over several views or by another unit do not take the place of the run's own.
    dataset = "" if kind == "folds" or subjects.is_own(subject, on) else f"{on.name}-"
    unit = "" if by == "scan" else f"-{by}"
    return subject / (f"evaluation-{dataset}{split}" + ("" if tta is None else f"-tta{tta}") + unit)


def command(
    context: typer.Context,
    subject: Annotated[
        Path | None, typer.Argument(metavar="RUN|MODEL|SCORES", help="Default: the newest run under runs/.")
    ] = None,
    on: Annotated[
        Path | None,
        typer.Argument(metavar="DATASET|LABELS", help="Default: the run's dataset, else the newest under data/."),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="SITE", hidden=True, show_default=False)] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of the dataset; of a run also tune.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="scan (default), study or patient.")] = None,
    reduce: Annotated[str | None, typer.Option("--reduce", help="mean, max or first; or max,Edema=mean.")] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="patient (default where they repeat), study or none.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="OTHER", help="Compare with another run, model or table.")
    ] = None,
    readers: Annotated[
        list[Path] | None, typer.Option("--readers", metavar="DIR|CSV", help="What people called; repeatable.")
    ] = None,
    operating: Annotated[
        list[str] | None,
        typer.Option("--operating", metavar="RULE", help="youden, sensitivity=0.9, specificity=…, cost=…."),
    ] = None,
    prevalence: Annotated[str | None, typer.Option("--prevalence", metavar="P", help="For PPV and NPV.")] = None,
    calibrate: Annotated[
        str | None, typer.Option("--calibrate", metavar="METHOD", help="temperature, platt, isotonic or none.")
    ] = None,
    subgroups: Annotated[
        str | None, typer.Option("--subgroups", metavar="A,B", help="AUROC by these columns: sex,age,view.")
    ] = None,
    drift: Annotated[
        Path | None, typer.Option("--drift", metavar="SCANS", help="Are these like those trained on? No labels.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Pool the AUROCs of sites: A/metrics.json B/metrics.json …")
    ] = False,
    gallery: Annotated[bool, typer.Option("--gallery", help="Scans and heat maps in the report.")] = False,
    require: Annotated[
        list[str] | None, typer.Option("--require", metavar="GATE", help="auroc>=0.85; else exit code 6.")
    ] = None,
    tta: views.Number = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", min=200, help="Of the bootstrap.")] = asked.DRAWS,
    seed: options.Seed = None,
    output: options.Output = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """AUROC and what else judges a classifier, per finding, with 95 % intervals.

    Writes report.html, metrics.json, metrics.csv, roc.png and the scores into RUN/evaluation-SPLIT, else ./evaluation.
    Operating points and calibration are chosen on the run's tune part, kept in the run and carried by damcli export.

    Example: damcli evaluate runs/aucm data/chexpert --by study
    """
    options.apply(quiet, verbose, json)
    options.check_device(device)
    wanted = asked.read(
        by=by,
        reduce=reduce,
        cluster=cluster,
        draws=draws,
        seed=seed,
        against=against,
        readers=readers or (),
        operating=operating or (),
        prevalence=prevalence,
        calibrate=calibrate,
        subgroups=subgroups,
        gallery=gallery,
        require=require or (),
    )
    if merge:
        merging.check(context)
        return merging.command([path for path in (subject, on, *(more or ())) if path], wanted, output)
    if more:
        fix = "name a run, a model or scores, then a dataset or labels; --merge takes the metrics.json of many sites"
        raise UsageError("one thing is evaluated on one other, and this is a third", where=more[0], fix=fix)
    if drift is not None:
        from damcli.commands.evaluate import drifting

        return drifting.command(subject, on, drift, output, device)
    if subject is None:
        subject = project.newest_run()
        console.note(f"took the run {subject}, the newest")
    on = on or _default_dataset(subject)
    kind = subjects.check(subject, on, split, tta)
    shown = split or subjects.default_split(kind, subject, on)
    folder = output or _default_folder(kind, subject, on, shown, tta, wanted.by)
    existed = folder.exists()
    try:
        with files.only_writer(folder):
            judgement = judge(subject, on, wanted, split, device, tta)
            written = saving.save(judgement, folder)
    except BaseException:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise
    show(judgement)
    console.note(f"wrote {folder}: {', '.join(written)}")
    onwards = dict.fromkeys(("run", "folds"), f"damcli export {subject}" + (f" --tta {tta}" if tta else ""))
    then = {**onwards, "model": f"damcli predict SCANS --model {subject}"}
    console.next_step(then.get(kind, "damcli info runs"))
    judging.stop_at_gates(judgement.document(), wanted, judgement.evaluation.title)
