"""A run's network on metadata: trained on its own, before the images', and mixed with it (ALGORITHM section 8).

It is trained in seconds, so a run that is stopped meanwhile trains it again from its start: on one machine to the same
bits, for all draws depend on the recipe's seed alone and one thread computes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from damcli import files
from damcli.config import Strict
from damcli.data import metadata
from damcli.data.metadata import Categories, Encoding
from damcli.deepauc import PESG, BalancedSampler, UniformSampler, losses
from damcli.deepauc.metadata import MetadataNetwork
from damcli.errors import DataError
from damcli.metrics import auroc
from damcli.recipes import Recipe, Stage
from damcli.training import seeds

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.training.plan import Plan

SCHEMA_VERSION = 1
MODEL, ABOUT = "model.safetensors", "metadata.json"
# Its own, in each stage: what suits images of a backbone that was trained before suits no small new network.
EPOCHS, ADAM_LR, PESG_LR = 20, 1e-3, 0.1
LOSS = {"loss", "margin", "form", "score", "nonnegative", "ab_start", "focal_alpha", "focal_gamma"}
# Batches grow with the dataset, so that a stage takes a second or two.
MOST_STEPS = 32
# Of the cells, shown as missing, and of the categories, as unseen: else nothing is learnt of what that means.
HIDDEN = 0.05

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """A metadata network at its best epoch on the tune part, with what it takes and tells; on the CPU.

    `weight` is that of its scores in the mixture; `aurocs` those of the tune part by finding, nan where undefined.
    """

    network: MetadataNetwork
    encoding: Encoding
    findings: tuple[str, ...]
    weight: float
    epoch: int
    aurocs: dict[str, float]

    def __str__(self) -> str:
        names = ", ".join(self.encoding.names)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in self.aurocs.items() if not math.isnan(value))
        return f"the metadata network ({names}) alone, on the tune part: AUROC {shown or 'n/a'}"

    def scores(self, dataset: Dataset, rows: npt.NDArray[np.int64]) -> Scores:
        """Return scores float32 (n, K) in [0, 1] of a dataset's rows; a column that it has not is missing for all.

        Raises `DataError` for text in a column of numbers.
        """
        with _one_thread():
            return _scores(self.network, self.encoding.encode(dataset.manifest[rows], dataset.path))

    def mixed(self, images: Scores, dataset: Dataset, rows: npt.NDArray[np.int64]) -> Scores:
        """Return the final scores (n, K) of a dataset's rows: `images`, those of the image network, mixed with ours."""
        return mix(images, self.scores(dataset, rows), self.weight)


def mix(images: Scores, metadata: Scores, weight: float) -> Scores:
    """Return (1 − weight) · images + weight · metadata, float32 (n, K).

    >>> mix(np.float32([[0.2]]), np.float32([[0.6]]), 0.25)
    array([[0.3]], dtype=float32)
    """
    return (np.float32(1 - weight) * images + np.float32(weight) * metadata).astype(np.float32)


def prepare(recipe: Recipe, dataset: Dataset, plan: Plan) -> Encoding:
    """Check the recipe's metadata columns and fit their encoding on the scans that are trained on.

    Raises `UsageError` for columns that are not there, `DataError` for those that say nothing, or tell of the label
    and not of the patient where `allow_leaks` is not set.
    """
    columns = metadata.choose(recipe.metadata.columns, dataset.manifest)
    scans = dataset.manifest[plan.train]
    leaks = metadata.leaks(scans, columns, dataset.info.findings)
    for leak in leaks.values() if not recipe.metadata.allow_leaks else ():
        raise metadata.refusal(leak)
    return metadata.fit(scans, columns, leaks)


def of_run(run: Path, recipe: Recipe, dataset: Dataset, plan: Plan) -> Trained | None:
    """Return a run's metadata network, trained where none is saved yet; None where the recipe has no columns.

    Where several processes train together, all call this; saving what they get is for the leading one.
    """
    if recipe.metadata.columns and files.settled_folder(folder(run)) is None:
        return train(recipe, dataset, plan)
    return load(run, recipe)


def train(recipe: Recipe, dataset: Dataset, plan: Plan) -> Trained:
    """Train the metadata network on the plan's findings, rows and losses, on the CPU; see `prepare` for what is raised.

    CE comes before an AUC loss, also where the images' network starts from given weights. Of several processes each
    trains the whole by itself.
    """
    encoding = prepare(recipe, dataset, plan)
    last = plan.stages[-1]
    rows = encoding.encode(dataset.manifest[plan.train], dataset.path)
    tune = encoding.encode(dataset.manifest[plan.tune], dataset.path)
    targets, truth = dataset.targets(plan.train)[:, last.columns], dataset.truth(plan.tune)[:, last.columns]
    network = MetadataNetwork(encoding.width, len(last.findings), seeds.key(recipe.seed, "metadata", "network"))
    best: tuple[int, dict[str, float], dict[str, torch.Tensor]] | None = None
    with _one_thread():
        stages = _stages(last.stage)
        for number, stage in enumerate(stages, 1):
            if number > 1:
                network.reset_classifier(seeds.key(recipe.seed, "metadata", "classifier", number))
            for epoch in _epochs(number, stage, network, encoding, rows, targets, recipe):
                scores = _scores(network, tune)
                aurocs = {name: auroc(truth[:, k], scores[:, k]) for k, name in enumerate(last.findings)}
                # Written so that an undefined value counts as better: then the last epoch is the best.
                if stage is stages[-1] and not (best and _monitored(recipe, aurocs) <= _monitored(recipe, best[1])):
                    best = epoch, aurocs, {key: value.clone() for key, value in network.state_dict().items()}
    assert best is not None
    epoch, aurocs, weights = best
    network.load_state_dict(weights)
    return Trained(network.eval(), encoding, tuple(last.findings), recipe.metadata.weight, epoch, aurocs)


def _stages(last: Stage) -> list[Stage]:
    """Return the stages of the metadata network: as the images' last one, with a schedule of its own."""
    auc = last.optimizer == "pesg"
    own = Stage(
        **last.model_dump(include={*LOSS, "sampler", "positives"}),
        optimizer="pesg" if auc else "adam",
        epochs=EPOCHS,
        lr=PESG_LR if auc else ADAM_LR,
    )
    return [Stage(loss="ce", epochs=EPOCHS, lr=ADAM_LR), own] if auc else [own]


def _epochs(
    number: int,
    stage: Stage,
    network: MetadataNetwork,
    encoding: Encoding,
    rows: metadata.Rows,
    targets: npt.NDArray[np.float32],
    recipe: Recipe,
) -> Iterator[int]:
    """Train a stage; yield the number of every epoch, from 1, when it is done."""
    seed = seeds.key(recipe.seed, "metadata", "sampler", number)
    batch_size = max(recipe.batch_size, math.ceil(len(rows) / MOST_STEPS))
    sampler: UniformSampler | BalancedSampler = UniformSampler(len(rows), batch_size, seed)
    prior = np.nanmean(targets, axis=0).tolist()
    if stage.sampler == "balanced":
        sampler = BalancedSampler(targets, batch_size, stage.positives, seed)
        prior = sampler.prior if len(prior) == 1 else prior
    # In evaluation mode a loss is that of this process alone, which has all scans.
    loss = losses.from_stage(stage, targets.shape[1], prior).eval()
    optimizer: torch.optim.Optimizer = (
        PESG(network.parameters(), loss, stage.lr, stage.gamma)
        if stage.optimizer == "pesg"
        else torch.optim.Adam(network.parameters(), stage.lr, fused=True)
    )
    for epoch in range(stage.epochs):
        shown = _hidden(rows, encoding, seeds.key(recipe.seed, "metadata", "hidden", number, epoch))
        for batch in sampler.batches(epoch):
            value = loss(network(torch.from_numpy(shown[batch])), torch.from_numpy(targets[batch]))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        yield epoch + 1


def _hidden(rows: metadata.Rows, encoding: Encoding, seed: int) -> metadata.Rows:
    """Return the rows with some cells missing and some categories unseen, drawn from `seed`."""
    shown, generator = rows.copy(), np.random.default_rng(seed)
    for part, span in zip(encoding.columns, encoding.spans, strict=True):
        draw = generator.random(len(rows))
        places = [span.stop - 1, span.stop - 2] if isinstance(part, Categories) else [span.stop - 1]
        for number, place in enumerate(places):
            chosen = (draw >= number * HIDDEN) & (draw < (number + 1) * HIDDEN)
            shown[chosen, span] = 0
            shown[chosen, place] = 1
    return shown


@torch.inference_mode()
def _scores(network: MetadataNetwork, rows: metadata.Rows) -> Scores:
    scores: Scores = network(torch.from_numpy(rows)).sigmoid().numpy()
    if not np.isfinite(scores).all():
        raise DataError(
            "the metadata network's score is not a finite number", fix="look for far values in the metadata columns"
        )
    return scores


def _monitored(recipe: Recipe, aurocs: dict[str, float]) -> float:
    defined = [value for value in aurocs.values() if not math.isnan(value)]
    return aurocs.get(recipe.monitor, float(np.mean(defined)) if defined else math.nan)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The order of a sum, and so its last bits, depends on the number of threads; and these layers are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _About(Strict):
    """`metadata.json`: what is known of the network, its weights aside."""

    schema_version: int
    sha256: str
    encoding: Encoding
    findings: tuple[str, ...]
    weight: float
    epoch: int
    aurocs: dict[str, float | None]


def folder(run: Path) -> Path:
    """Return where a run's metadata network lies."""
    return run / "checkpoints" / "metadata"


def save(trained: Trained, run: Path) -> None:
    """Write the network into `run/checkpoints/metadata/`, whole or not at all: safetensors and JSON, hashed."""
    from safetensors.torch import save as as_bytes

    data = as_bytes(dict(trained.network.state_dict()))
    about = _About(
        schema_version=SCHEMA_VERSION,
        sha256=hashlib.sha256(data).hexdigest(),
        encoding=trained.encoding,
        findings=trained.findings,
        weight=trained.weight,
        epoch=trained.epoch,
        aurocs={name: None if math.isnan(value) else value for name, value in trained.aurocs.items()},
    ).model_dump(mode="json")
    with files.replacing_folder(folder(run)) as draft:
        (draft / MODEL).write_bytes(data)
        files.write_json(draft / ABOUT, {**about, "seal": _seal(about)})


def load(run: Path, recipe: Recipe) -> Trained | None:
    """Return a run's metadata network, None where its recipe has none.

    Raises `DataError` for one that is missing, or has changed since it was written.
    """
    from safetensors.torch import load as from_bytes

    if not recipe.metadata.columns:
        return None
    found = files.settled_folder(folder(run))
    if found is None:
        raise DataError(
            "this run has no metadata network yet", where=run, fix=f"train it to its end: damcli train --resume {run}"
        )
    raw = files.read_json(found / ABOUT, "metadata network")
    if not isinstance(raw, dict) or raw.pop("seal", None) != _seal(raw):
        raise _damaged(found / ABOUT)
    if raw.get("schema_version") != SCHEMA_VERSION:
        version = raw.get("schema_version")
        raise DataError(f"this metadata network has format {version}, this damcli reads {SCHEMA_VERSION}", where=found)
    try:
        about = _About.model_validate(raw)
    except ValidationError as error:
        raise _damaged(found / ABOUT) from error
    data = (found / MODEL).read_bytes() if (found / MODEL).is_file() else b""
    if hashlib.sha256(data).hexdigest() != about.sha256:
        raise _damaged(found / MODEL)
    network = MetadataNetwork(about.encoding.width, len(about.findings), seed=0)
    network.load_state_dict(from_bytes(data))
    aurocs = {name: math.nan if value is None else value for name, value in about.aurocs.items()}
    return Trained(network.eval(), about.encoding, about.findings, about.weight, about.epoch, aurocs)


def _damaged(path: Path) -> DataError:
    return DataError(
        "the metadata network is damaged: this file is missing, or has changed since it was written",
        where=path,
        fix="take it from a backup, or train again",
    )


def _seal(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
