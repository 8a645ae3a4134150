"""Optuna's part in a search: which settings to try next, and which trials to give up.

What is known lies in `members.json` and the trials' own `metrics.jsonl`: Optuna's study is made from them anew for
each trial, and its sampler is seeded by the trial's number. A search that was killed anywhere therefore goes on as if
it had not been, and no second record can contradict the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli.errors import MachineError
from damcli.recipes import Recipe
from damcli.training import seeds, tracking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from damcli.training.group import Member, Members
    from damcli.training.tuning import Axis


class Proposals:
    """TPE over the axes of a search (Bergstra et al. 2011), with pruning at the median of the trials before.

    Optuna's defaults: ten trials at random first, and none pruned before five are done. Raises `MachineError` where
    Optuna is not installed.
    """

    def __init__(self, axes: Sequence[Axis], members: Members) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MachineError(
                "drawing trials needs Optuna, which is not installed", fix="pip install 'damcli[tune]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.members = optuna, members
        self.distributions = {axis.key: self._distribution(axis) for axis in axes}

    def settings(self, number: int) -> dict[str, Any]:
        """Return what trial `number` (from 0) tries, given all before it."""
        return dict(self._study(number).ask(self.distributions).params)

    def judge(self, member: Member) -> Callable[[Path], str | None]:
        """Return what says, after each epoch of a trial's last stage, why it is given up, or None."""
        number = self.members.group.members.index(member)
        study = self._study(number)
        study.enqueue_trial(member.settings)
        trial = study.ask(self.distributions)
        recipe, _ = self.members.settings(member)
        known: set[int] = set()

        def reason(run: Path) -> str | None:
            for epoch, value in curve(run, recipe):
                if epoch not in known:
                    known.add(epoch)
                    trial.report(value, epoch)
            if not trial.should_prune():
                return None
            return f"after epoch {max(known)} its best AUROC was below the median of the trials before"

        return reason

    def _study(self, number: int) -> Any:
        optuna = self.optuna
        recipe = self.members.recipe
        sampler = optuna.samplers.TPESampler(seed=seeds.key(recipe.seed, "trial", number) % 2**32)
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=optuna.pruners.MedianPruner())
        for member in self.members.group.members[:number]:
            study.add_trial(self._past(member))
        return study

    def _past(self, member: Member) -> Any:
        state = self.optuna.trial.TrialState
        done = member.status == "done" and member.tune_auroc is not None
        states = {"done": state.COMPLETE if done else state.FAIL, "pruned": state.PRUNED}
        values: list[tuple[int, float]] = []
        if member.status in ("done", "pruned"):
            values = curve(self.members.run(member), self.members.settings(member)[0])
        return self.optuna.trial.create_trial(
            state=states.get(member.status, state.FAIL),
            value=member.tune_auroc if done else None,
            params=member.settings,
            distributions=self.distributions,
            intermediate_values=dict(values),
        )

    def _distribution(self, axis: Axis) -> Any:
        from damcli.training.tuning import Choice

        kinds = self.optuna.distributions
        if isinstance(axis, Choice):
            return kinds.CategoricalDistribution(axis.values)
        kind = kinds.IntDistribution if axis.whole else kinds.FloatDistribution
        return kind(axis.low, axis.high, log=axis.log)


def curve(run: Path, recipe: Recipe) -> list[tuple[int, float]]:
    """Return (epoch, AUROC of the tune part that the recipe monitors) of a run's last stage, where it is defined."""
    last = recipe.stages()[-1][0]
    found = []
    for line in (run / tracking.METRICS).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["event"] == "epoch" and record["stage"] == last:
            mean = recipe.monitor == "mean"
            value = record["mean_tune_auroc"] if mean else record["tune_auroc"].get(recipe.monitor)
            if value is not None:
                found.append((int(record["epoch"]), float(value)))
    return found
