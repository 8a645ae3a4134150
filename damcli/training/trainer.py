"""Stages, epochs and steps: what happens in a training run, to be read from top to bottom.

Every random draw is a function of the seed and of what it is drawn for, so that a run which was stopped anywhere and
resumed ends (on a CPU) with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from damcli import config, files
from damcli.data import loader
from damcli.data.augment import affine
from damcli.deepauc import PESG, AUCMarginLoss
from damcli.deepauc.network import Classifier
from damcli.errors import DataError
from damcli.metrics import auroc, components
from damcli.recipes import Recipe, Stage
from damcli.training import checkpoint, folder, launch, scoring, seeds
from damcli.training.checkpoint import Best, Progress
from damcli.training.events import Boundary, EpochDone, Event, Finished, Scored, StageStarted, Step, Warned
from damcli.training.interruption import Interruption
from damcli.training.observation import Observation, observe
from damcli.training.plan import Plan, StagePlan
from damcli.training.tracking import Metrics

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from damcli.data.store import Dataset

STEPS_PER_TIMING = 10


@dataclass
class Trainer:
    """A run under way; `progress` says how far it is."""

    recipe: Recipe
    dataset: Dataset
    run: Path
    plan: Plan
    fabric: Fabric
    network: Classifier
    model: torch.nn.Module  # the network as Fabric calls it: same weights, in the run's precision
    metrics: Metrics
    interruption: Interruption
    progress: Progress

    def __post_init__(self) -> None:
        self.scan_seeds = seeds.of_scans(self.dataset.manifest["id"].to_list())
        self.saved_at = time.monotonic()

    def stages(self) -> Iterator[Event]:
        for planned in self.plan.stages:
            if planned.number < self.progress.stage:
                continue
            begun = planned.number == self.progress.stage
            if not begun:
                # In the first stage too: some of timm's last layers start so wide that early steps only shrink them.
                self.network.reset_classifier(seeds.key(self.recipe.seed, "classifier", planned.number))
                nothing = (0,) * self.network.num_findings
                self.progress = Progress(
                    stage=planned.number, seen=nothing, risen=(False,) * len(nothing), metrics_bytes=self.metrics.size
                )
            self.loss = planned.loss(self.network.num_findings).to(self.fabric.device)
            self.optimizer = planned.optimizer(self.network, self.loss)
            if begun:
                state = checkpoint.load_state(self.run)
                self.loss.load_state_dict(state["loss"])
                self.optimizer.load_state_dict(state["optimizer"])
            stage = planned.stage
            yield StageStarted(planned.number, stage.loss, stage.optimizer, stage.epochs, len(planned.sampler))
            while self.progress.epoch < stage.epochs:
                yield from self.epoch(planned)
            yield self.boundary(next_lr=None)

    def epoch(self, planned: StagePlan) -> Iterator[Event]:
        batches = planned.sampler.batches(self.progress.epoch)
        left = [self.plan.train[batch] for batch in batches[self.progress.step :]]
        started, scans = time.perf_counter(), 0
        pin = self.fabric.device.type == "cuda"
        with closing(loader.batches(self.dataset, left, pin=pin)) as loaded:
            for batch in loaded:
                yield from self.divide_lr(planned.stage)
                observed = self.learn(batch)
                scans += len(batch.rows)
                self.note(observed)
                if self.progress.steps % STEPS_PER_TIMING == 0 or self.progress.step == len(batches):
                    self.metrics.time(**self.place, scans_per_second=scans / (time.perf_counter() - started))
                yield Step(planned.number, self.progress.epoch + 1, self.progress.step, observed.loss)
                self.save_if_due()
        speed = scans / (time.perf_counter() - started)
        for text in self.doubts():
            self.metrics.write(event="warning", stage=planned.number, epoch=self.progress.epoch + 1, text=text)
            yield Warned(text)

        scores = yield from self.tune_scores(self.network, self.model)
        aurocs, mean = self.aurocs(scores)
        loss = self.progress.loss_sum / len(batches)
        epoch, best = self.progress.epoch + 1, self.progress.best
        # Written so that an undefined mean counts as better: then the last epoch is the best.
        better = planned is self.plan.stages[-1] and not (
            best and best.mean_auroc is not None and mean <= best.mean_auroc
        )
        if better:
            best = Best(epoch=epoch, mean_auroc=None if math.isnan(mean) else mean)
        self.metrics.write(
            event="epoch",
            stage=planned.number,
            epoch=epoch,
            loss=loss,
            tune_auroc=aurocs,
            mean_tune_auroc=mean,
            best=better,
        )
        self.advance(
            epoch=epoch,
            step=0,
            loss_sum=0.0,
            seen=(0,) * len(self.progress.seen),
            best=best,
            metrics_bytes=self.metrics.size,
        )
        if better:
            self.save("best")
        self.save("last")
        yield EpochDone(planned.number, epoch, planned.stage.epochs, loss, aurocs, mean, better, speed)

    def learn(self, batch: loader.Batch) -> Observation:
        device, seed, progress = self.fabric.device, self.recipe.seed, self.progress
        # Dropout and the like draw from torch's own generator.
        torch.manual_seed(seeds.key(seed, "step", progress.stage, progress.steps))
        images = self.network.as_input(batch.images.to(device, non_blocking=True))
        images = images.contiguous(memory_format=torch.channels_last)
        # With the step in it, a positive that a balanced epoch draws again does not look the same again.
        draws = self.scan_seeds[batch.rows] ^ seeds.key(seed, "augmentation", progress.stage, progress.steps)
        images = affine(images, self.recipe.augment, torch.from_numpy(draws).to(device))
        logits = self.model(images)
        logits.retain_grad()
        targets = batch.targets.to(device, non_blocking=True)
        loss, losses, present = self.loss.detailed(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        observed = observe(self.loss, loss, losses, present, logits, targets, self.network.parameters())
        if not observed.finite:
            self.refuse_nonfinite(batch, logits, observed)
        self.optimizer.step()
        return observed

    def divide_lr(self, stage: Stage) -> Iterator[Event]:
        progress = self.progress
        due = progress.steps in stage.decay_steps or (progress.step == 0 and progress.epoch in stage.decay_epochs)
        if not (due and progress.steps):
            return
        yield self.boundary(next_lr=self.lr / stage.divide_lr_by)
        if isinstance(self.optimizer, PESG):
            self.optimizer.end_stage(stage.divide_lr_by)
            return
        for group in self.optimizer.param_groups:
            group["lr"] /= stage.divide_lr_by

    def boundary(self, next_lr: float | None) -> Boundary:
        """Record a stage boundary as it stands before the reference moves."""
        distance = float(self.optimizer.distance()) if isinstance(self.optimizer, PESG) else None
        self.metrics.write(event="boundary", **self.place, lr=self.lr, next_lr=next_lr, distance=distance)
        return Boundary(self.progress.stage, self.progress.steps, self.lr, next_lr, distance)

    def doubts(self) -> Iterator[str]:
        """Yield, in words, what went wrong for a finding in the epoch whose steps are done."""
        progress, findings = self.progress, self.dataset.info.findings
        where = f"stage {progress.stage}, epoch {progress.epoch + 1}"
        unseen = [name for name, count in zip(findings, progress.seen, strict=True) if not count]
        if unseen:
            yield f"{where}: no positive of {', '.join(unseen)} was met: a balanced sampler or more scans are needed"
        if not isinstance(self.loss, AUCMarginLoss):
            return
        pairs = zip(findings, self.loss.a.tolist(), self.loss.b.tolist(), strict=True)
        level = [f"{name} (a {a:.3f}, b {b:.3f})" for name, a, b in pairs if a <= b and name not in unseen]
        if level:
            yield (
                f"{where}: a ≤ b for {', '.join(level)}: its positives do not yet score above its negatives; train "
                f"longer, or try another stage{progress.stage}.lr or ab_start"
            )
        last = zip(findings, progress.risen, self.loss.alpha.tolist(), strict=True)
        flat = [name for name, risen, alpha in last if not (risen or alpha > 0) and name not in unseen]
        if flat and self.loss.projected and progress.epoch == 0:
            yield (
                f"{where}: α of {', '.join(flat)} sat at 0 from the start: the margin {self.loss.margin:g} was met all "
                f"along, and AUC-M only drew scores to their class means; raise stage{progress.stage}.margin"
            )

    def tune_scores(
        self, network: Classifier, model: torch.nn.Module
    ) -> Generator[Event, None, npt.NDArray[np.float32]]:
        parts = []
        device = self.fabric.device
        with closing(scoring.score(network, self.dataset, self.plan.tune, device=device, model=model)) as batches:
            for rows, scores in batches:
                parts.append(scores)
                yield Scored(len(rows))
                self.leave_if_asked()
        return np.concatenate(parts)

    def aurocs(self, scores: npt.NDArray[np.float32]) -> tuple[dict[str, float], float]:
        truth = self.dataset.truth(self.plan.tune)
        aurocs = {name: auroc(truth[:, k], scores[:, k]) for k, name in enumerate(self.dataset.info.findings)}
        defined = [value for value in aurocs.values() if not math.isnan(value)]
        return aurocs, float(np.mean(defined)) if defined else math.nan

    def finish(self) -> Iterator[Event]:
        network, info = checkpoint.load_network(self.run, "best")
        scores = yield from self.tune_scores(network, launch.setup(self.fabric, network))
        table: dict[str, Any] = {"path": self.dataset.ids(self.plan.tune)}
        table |= {name: scores[:, k] for k, name in enumerate(info.findings)}
        folder.write_table(self.run / "scores-tune.parquet", table)
        truth = self.dataset.truth(self.plan.tune)
        parts = {name: components(truth[:, k], scores[:, k]) for k, name in enumerate(info.findings)}
        best = self.progress.best
        assert best is not None
        yield Finished(self.run, best.epoch, parts, self.aurocs(scores)[1])

    def advance(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update=changes)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def place(self) -> dict[str, int]:
        return {"stage": self.progress.stage, "epoch": self.progress.epoch + 1, "step": self.progress.steps}

    def note(self, observed: Observation) -> None:
        """Count a step that was made, and record it."""
        progress = self.progress
        alphas = observed.saddle.get("alpha", [0.0] * len(progress.risen))
        self.advance(
            step=progress.step + 1,
            steps=progress.steps + 1,
            loss_sum=progress.loss_sum + observed.loss,
            seen=tuple(old + new for old, new in zip(progress.seen, observed.positives, strict=True)),
            risen=tuple(old or alpha > 0 for old, alpha in zip(progress.risen, alphas, strict=True)),
        )
        self.metrics.write(
            event="step",
            **self.place,
            lr=self.lr,
            loss=observed.loss,
            gradient_norm=observed.gradient_norm,
            losses=observed.losses,
            **observed.saddle,
            positive_scores=observed.positive_scores,
            negative_scores=observed.negative_scores,
            positives=observed.positives,
            positives_seen=self.progress.seen,
            logit_gradients=observed.logit_gradients,
        )
        self.advance(metrics_bytes=self.metrics.size)

    def save_if_due(self) -> None:
        self.leave_if_asked()
        unit, many = config.interval(self.recipe.checkpoint_every)
        since = self.progress.steps % many if unit == "steps" else many - (time.monotonic() - self.saved_at)
        if since <= 0:
            self.save("last")

    def leave_if_asked(self) -> None:
        if self.interruption.wanted:
            self.save("last")
            self.interruption.leave()

    def save(self, which: checkpoint.Which) -> None:
        self.metrics.sync()
        state = {"loss": self.loss.state_dict(), "optimizer": self.optimizer.state_dict()} if which == "last" else {}
        checkpoint.save(self.run, which, self.progress, self.network.state_dict(), state)
        self.saved_at = time.monotonic()

    def refuse_nonfinite(self, batch: loader.Batch, logits: torch.Tensor, observed: Observation) -> NoReturn:
        findings, progress = self.dataset.info.findings, self.progress
        broken = ~torch.isfinite(logits).all(dim=0).cpu()
        what = "loss" if not math.isfinite(observed.loss) else "gradient's norm"
        value = observed.loss if what == "loss" else observed.gradient_norm
        named = [name for name, bad in zip(findings, broken.tolist(), strict=True) if bad] or list(findings)
        report = self.run / "nonfinite.json"
        files.write_json(
            report,
            {
                "stage": progress.stage,
                "epoch": progress.epoch + 1,
                "step": progress.steps + 1,
                "loss": str(observed.loss),
                "gradient_norm": str(observed.gradient_norm),
                "findings": named,
                "scans": self.dataset.ids(batch.rows),
            },
        )
        raise DataError(
            f"the {what} is {value} at stage {progress.stage}, epoch {progress.epoch + 1}, "
            f"step {progress.step + 1}: {', '.join(named)}",
            where=report,
            fix=f"train again with a lower learning rate: --set stage{progress.stage}.lr=…",
        )
