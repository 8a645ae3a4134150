"""Stages, epochs and steps: what happens in a training run, to be read from top to bottom.

Every random draw is a function of the seed and of what it is drawn for, so that a run which was stopped anywhere and
resumed ends (on a CPU) with the same bits as one that was not. With several processes all go through the same steps,
each with its part of every batch; what one of them is told (a signal, the time) all act upon at the same step. The
leading one writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from damcli import config
from damcli.data import loader
from damcli.data.augment import augment
from damcli.deepauc import PESG, processes
from damcli.deepauc.network import Classifier
from damcli.metrics import auroc, components
from damcli.recipes import Recipe, Stage
from damcli.training import checkpoint, decisions, folder, scoring, seeds, step, troubles
from damcli.training.checkpoint import Best, Progress
from damcli.training.events import Boundary, EpochDone, Event, Finished, Noted, Scored, StageStarted, Step, Warned
from damcli.training.interruption import Interruption
from damcli.training.launch import Machine
from damcli.training.loggers import Loggers
from damcli.training.metadata import Trained
from damcli.training.observation import Observation, observe
from damcli.training.plan import Plan, StagePlan
from damcli.training.tracking import Metrics

if TYPE_CHECKING:
    from damcli.data.store import Dataset

STEPS_PER_TIMING = 10


class TimeLimit(Exception):  # noqa: N818
    """The time that the run was given is over; its state is saved."""


@dataclass
class Trainer:
    """A run under way; `progress` says how far it is."""

    recipe: Recipe
    dataset: Dataset
    run: Path
    plan: Plan
    machine: Machine
    network: Classifier
    metrics: Metrics | None  # of the leading process
    interruption: Interruption
    progress: Progress
    deadline: float = math.inf  # of `time.monotonic`
    loggers: Loggers = field(default_factory=lambda: Loggers({}))
    mixture: Trained | None = None  # the metadata network, whose scores are mixed with the final ones

    def __post_init__(self) -> None:
        self.scan_seeds = seeds.of_scans(self.dataset.manifest["id"].to_list())
        self.saved_at = time.monotonic()
        self.failures: list[str] = []  # of loggers, not said yet

    def stages(self) -> Iterator[Event]:
        for planned in self.plan.stages:
            if planned.number < self.progress.stage:
                continue
            begun = planned.number == self.progress.stage
            self.begin(planned, begun)
            stage = planned.stage
            steps = len(planned.sampler)
            findings = tuple(planned.findings)
            yield StageStarted(planned.number, stage.loss, stage.optimizer, stage.epochs, steps, findings)
            while self.progress.epoch < stage.epochs and not self.stale(planned):
                yield from self.epoch(planned)
            if self.progress.epoch < stage.epochs:
                yield Noted(
                    f"stage {planned.number} ends early: no better epoch than {self.progress.epoch} − "
                    f"{self.recipe.patience}"
                )
            yield self.boundary(next_lr=None)

    def begin(self, planned: StagePlan, begun: bool) -> None:
        """Make ready for a stage, or for what is left of it."""
        if self.network.num_findings != len(planned.findings):
            self.network = self.network.with_findings(len(planned.findings))
        if not begun:
            # In the first stage too: some of timm's last layers start so wide that early steps only shrink them.
            self.network.reset_classifier(seeds.key(self.recipe.seed, "classifier", planned.number))
            nothing = (0,) * len(planned.findings)
            size = self.metrics.size if self.metrics else 0
            self.progress = Progress(
                stage=planned.number, seen=nothing, risen=(False,) * len(nothing), metrics_bytes=size
            )
        else:
            checkpoint.restore(self.network, self.run, "last")
        self.model = self.machine.setup(self.network, self.recipe.compile)
        self.loss = planned.loss().to(self.machine.device)
        self.optimizer = planned.optimizer(self.network, self.loss)
        if begun:
            state = checkpoint.load_state(self.run)
            self.loss.load_state_dict(state["loss"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.machine.scaler.load_state_dict(state["scaler"])

    def epoch(self, planned: StagePlan) -> Iterator[Event]:
        whole = planned.sampler.whole_batches(self.progress.epoch)
        left = [self.plan.train[batch] for batch in planned.sampler.batches(self.progress.epoch)[self.progress.step :]]
        started, scans = time.perf_counter(), 0
        with closing(loader.batches(self.dataset, left, pin=self.machine.device.type == "cuda")) as loaded:
            for batch in loaded:
                yield from self.divide_lr(planned.stage)
                lr = self.cycle_lr(planned)
                size = len(whole[self.progress.step])
                observed = self.learn(planned, batch)
                scans += size
                self.note(observed, lr)
                if self.progress.steps % STEPS_PER_TIMING == 0 or self.progress.step == len(whole):
                    self.time(scans_per_second=scans / (time.perf_counter() - started))
                yield Step(planned.number, self.progress.epoch + 1, self.progress.step, size, lr, observed)
                while self.failures:
                    yield Warned(self.failures.pop())
                self.save_or_leave()
        speed = scans / (time.perf_counter() - started)
        for text in troubles.doubts(self.progress, planned, self.loss):
            self.record(event="warning", stage=planned.number, epoch=self.progress.epoch + 1, text=text)
            yield Warned(text)

        scores = yield from self.tune_scores(self.network)
        aurocs, mean = self.aurocs(planned, scores)
        loss = self.progress.loss_sum / len(whole)
        epoch, best = self.progress.epoch + 1, self.progress.best
        watched = mean if self.recipe.monitor == "mean" else aurocs.get(self.recipe.monitor, math.nan)
        # Written so that an undefined figure counts as better: then the last epoch is the best.
        better = planned is self.plan.stages[-1] and not (best and best.auroc is not None and watched <= best.auroc)
        if better:
            best = Best(epoch=epoch, auroc=None if math.isnan(watched) else watched)
        self.record(
            event="epoch",
            stage=planned.number,
            epoch=epoch,
            loss=loss,
            tune_auroc=aurocs,
            mean_tune_auroc=mean,
            best=better,
        )
        self.advance(epoch=epoch, step=0, loss_sum=0.0, seen=(0,) * len(self.progress.seen), best=best)
        if better:
            self.save("best")
        self.save("last")
        yield EpochDone(planned.number, epoch, planned.stage.epochs, loss, aurocs, mean, better, speed)

    def learn(self, planned: StagePlan, batch: loader.Batch) -> Observation:
        device, progress, machine = self.machine.device, self.progress, self.machine
        images = self.network.as_input(batch.images.to(device, non_blocking=True))
        images = images.contiguous(memory_format=torch.channels_last)
        # With the step in it, a positive that a balanced epoch draws again does not look the same again.
        draws = self.scan_seeds[batch.rows] ^ seeds.key(
            self.recipe.seed, "augmentation", progress.stage, progress.steps
        )
        images = augment(images, self.recipe.augment, torch.from_numpy(draws).to(device))
        targets = batch.targets[:, planned.columns].to(device, non_blocking=True)
        # Dropout and the like draw from torch's own generator, on each process by itself.
        purpose = ("step", progress.stage, progress.steps, *((machine.rank,) if machine.rank else ()))
        self.optimizer.zero_grad(set_to_none=True)
        outcome = step.backward(
            machine,
            self.model,
            self.loss,
            images,
            targets,
            self.recipe.accumulate,
            seeds.key(self.recipe.seed, *purpose),
        )
        scale = machine.scaler.get_scale()
        machine.unscale(self.optimizer)
        observed = observe(
            self.loss,
            outcome.loss,
            outcome.losses,
            outcome.present,
            outcome.logits,
            targets,
            self.network.parameters(),
            scale,
        )
        if math.isfinite(observed.loss) and not observed.finite and machine.scaler.is_enabled() and scale > 1:
            self.advance(skipped=progress.skipped + 1)
            self.record(event="skipped", **self.place, scale=scale)
        elif not observed.finite:
            rows = self.plan.train[planned.sampler.whole_batches(progress.epoch)[progress.step]]
            where = self.run if machine.leads else None
            raise troubles.nonfinite(progress, planned, observed, self.dataset.ids(rows), where)
        machine.step(self.optimizer)
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

    def cycle_lr(self, planned: StagePlan) -> float:
        """Set the learning rate where the stage's is cyclic, and return it."""
        lr = planned.cyclic_lr(self.progress.steps)
        for group in self.optimizer.param_groups if lr is not None else ():
            group["lr"] = lr
        return self.lr

    def boundary(self, next_lr: float | None) -> Boundary:
        """Record a stage boundary as it stands before the reference moves."""
        distance = float(self.optimizer.distance()) if isinstance(self.optimizer, PESG) else None
        self.record(event="boundary", **self.place, lr=self.lr, next_lr=next_lr, distance=distance)
        return Boundary(self.progress.stage, self.progress.steps, self.lr, next_lr, distance)

    def stale(self, planned: StagePlan) -> bool:
        """Whether the last stage has gone on for the recipe's patience without a better epoch."""
        best, patience = self.progress.best, self.recipe.patience
        last = planned is self.plan.stages[-1]
        return bool(last and patience and best and self.progress.epoch - best.epoch >= patience)

    def tune_scores(self, network: Classifier) -> Generator[Event, None, npt.NDArray[np.float32]]:
        parts, machine, rows = [], self.machine, self.plan.tune
        if machine.processes > 1:
            # Batch normalisation's statistics are each process's own until the leading one's are taken.
            processes.broadcast(list(network.buffers()))
            # Scores that are not finite may be those of one process alone.
            checkpoint.check_finite(self.run, self.progress, network.state_dict())
        part = {"rank": machine.rank, "ranks": machine.processes}
        scored = scoring.score(network, self.dataset, rows, machine.device, machine.fabric.autocast, **part)
        with closing(scored) as batches:
            for taken, scores in batches:
                parts.append((taken, scores))
                yield Scored(len(taken))
                self.leave_if_asked()
        return scoring.gathered(rows, parts, machine.device)

    def aurocs(self, planned: StagePlan, scores: npt.NDArray[np.float32]) -> tuple[dict[str, float], float]:
        truth = self.dataset.truth(self.plan.tune)[:, planned.columns]
        aurocs = {name: auroc(truth[:, k], scores[:, k]) for k, name in enumerate(planned.findings)}
        defined = [value for value in aurocs.values() if not math.isnan(value)]
        return aurocs, float(np.mean(defined)) if defined else math.nan

    def finish(self) -> Iterator[Event]:
        self.machine.wait()  # for the leading process, which writes the best checkpoint
        network, info = checkpoint.load_network(self.run, "best")
        scores = yield from self.tune_scores(network.to(self.machine.device))
        if self.mixture:
            scores = self.mixture.mixed(scores, self.dataset, self.plan.tune)
        planned = self.plan.stages[-1]
        truth = self.dataset.truth(self.plan.tune)[:, planned.columns]
        if self.machine.leads:
            table: dict[str, Any] = {"path": self.dataset.ids(self.plan.tune)}
            table |= {name: scores[:, k] for k, name in enumerate(info.findings)}
            folder.write_table(self.run / "scores-tune.parquet", table)
            weights = checkpoint.weights_sha256(self.run)
            reference = decisions.refer(info.findings, scores, self.dataset, self.plan.tune, weights_sha256=weights)
            decisions.write_reference(self.run, reference)
        parts = {name: components(truth[:, k], scores[:, k]) for k, name in enumerate(info.findings)}
        # Of what lies there: a run killed between its two saves and resumed elsewhere may count another one as best.
        found = checkpoint.read_progress(self.run, "best")
        assert found is not None
        assert found.best is not None
        yield Finished(self.run, found.best.epoch, parts, self.aurocs(planned, scores)[1], self.mixture is not None)

    def advance(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update=changes)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def place(self) -> dict[str, int]:
        return {"stage": self.progress.stage, "epoch": self.progress.epoch + 1, "step": self.progress.steps}

    def note(self, observed: Observation, lr: float) -> None:
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
        self.record(
            event="step",
            **self.place,
            lr=lr,
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

    def record(self, **entry: Any) -> None:
        """Append to the run's metrics, and keep their size with the progress."""
        if self.metrics:
            self.metrics.write(**entry)
            before = [one for one in self.plan.stages if one.number < self.progress.stage]
            steps = sum(one.stage.epochs * len(one.sampler) for one in before) + self.progress.steps
            [planned] = [one for one in self.plan.stages if one.number == self.progress.stage]
            self.failures += self.loggers.log(entry, steps, planned.findings)
            # What else is written, a resumed run writes again before it comes to the next of these.
            if entry["event"] in ("step", "epoch"):
                self.advance(metrics_bytes=self.metrics.size)

    def time(self, **entry: Any) -> None:
        if self.metrics:
            self.metrics.time(**self.place, **entry)

    def save_or_leave(self) -> None:
        """After a step: leave where a signal or the time limit says so, save where it is time; all processes alike."""
        unit, many = config.interval(self.recipe.checkpoint_every)
        now = time.monotonic()
        due = self.progress.steps % many == 0 if unit == "steps" else now - self.saved_at >= many
        signal, due, late = self.agreed(self.interruption.signal, due, now >= self.deadline)
        if signal or due or late:
            self.save("last")
        if signal:
            self.interruption.leave(int(signal))
        if late:
            raise TimeLimit

    def leave_if_asked(self) -> None:
        """While scores are made: leave where a signal says so. The epoch's last step is saved with all it wrote."""
        [signal] = self.agreed(self.interruption.signal)
        if signal:
            self.save("last")
            self.interruption.leave(int(signal))

    def agreed(self, *wishes: float) -> list[float]:
        """Return the largest of each wish over the processes."""
        if self.machine.processes == 1:
            return list(wishes)
        return processes.largest(torch.tensor(wishes, dtype=torch.float64, device=self.machine.device)).tolist()

    def save(self, which: checkpoint.Which) -> None:
        self.saved_at = time.monotonic()
        if not self.metrics:
            checkpoint.check_finite(self.run, self.progress, self.network.state_dict())
            return
        self.metrics.sync()
        state: dict[str, Any] = {}
        if which == "last":
            parts = {"loss": self.loss, "optimizer": self.optimizer, "scaler": self.machine.scaler}
            state = {name: part.state_dict() for name, part in parts.items()}
        made_on = folder.made_on(self.machine.device, self.machine.processes)
        checkpoint.save(self.run, which, self.progress, self.network.state_dict(), state, made_on)
