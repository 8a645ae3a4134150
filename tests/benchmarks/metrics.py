"""DeLong's intervals beside scikit-learn's plain AUROCs of the same scans, and how long the bootstrap takes.

Both sides run in one process on one core, in turn, and medians are compared. scikit-learn is a test dependency:

    python tests/benchmarks/metrics.py
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from damcli.metrics import components, estimate
from damcli.metrics.intervals import bootstrap
from damcli.metrics.ranking import Figure, Ranking, area, average_precision, partial_area, sensitivity_at

Array = NDArray[np.floating]


def scans(rng: np.random.Generator, n: int, findings: int, kind: type, positives: float) -> tuple[Array, Array]:
    """Return targets and scores (N,K): probabilities as a network gives them."""
    targets = (rng.random((n, findings)) < positives).astype(np.float64)
    return targets, (1 / (1 + np.exp(-rng.normal(targets - 2)))).astype(kind)


def medians(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each side, the sides taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def beside_scikit_learn(targets: Array, scores: Array, rounds: int) -> tuple[float, float, float]:
    """Return seconds of ours with intervals, of scikit-learn without, and how far the AUROCs are apart at most."""
    columns = range(targets.shape[1])
    sides = {
        "mine": lambda: [estimate([components(targets[:, k], scores[:, k])]).value for k in columns],
        "theirs": lambda: [roc_auc_score(targets[:, k], scores[:, k]) for k in columns],
    }
    apart = float(np.abs(np.subtract(sides["mine"](), sides["theirs"]())).max())
    found = medians(sides, rounds)
    return found["mine"], found["theirs"], apart


def all_figures(ranking: Ranking, counts: object) -> Array:
    figures: list[Figure] = [area, average_precision, partial_area(0.1), sensitivity_at(0.9)]
    return np.concatenate([figure(ranking, counts) for figure in figures], axis=-1)


def drawing(n: int, findings: int, draws: int, figure: Figure) -> float:
    """Return the seconds of a bootstrap over patients, of three scans each on average."""
    rng = np.random.default_rng(1)
    targets, scores = scans(rng, n, findings, np.float64, 0.2)
    patients = [f"patient{number}" for number in rng.integers(0, n // 3, n)]
    start = time.perf_counter()
    rankings = [Ranking.of(targets[:, k], scores[:, k]) for k in range(findings)]
    for _ in bootstrap(rankings, figure, patients, n, draws):
        pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1_000_000)
    parser.add_argument("--findings", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=2000)
    asked = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, NumPy {np.__version__}, scikit-learn {sklearn.__version__}, "
        f"{asked.scans:,} scans of {asked.findings} findings\n"
    )
    print("| scores | positives | damcli, with intervals | scikit-learn, plain AUROCs | ratio | apart at most |")
    print("|---|---|---|---|---|---|")
    for kind in (np.float32, np.float64):
        for positives in (0.02, 0.1, 0.5):
            data = scans(np.random.default_rng(0), asked.scans, asked.findings, kind, positives)
            mine, theirs, apart = beside_scikit_learn(*data, asked.rounds)
            print(f"| {kind.__name__} | {positives:.0%} | {mine:.2f} s | {theirs:.2f} s | {mine / theirs:.2f} "
                  f"| {apart:.0e} |", flush=True)  # fmt: skip
    print(f"\n| bootstrap over patients, {asked.draws:,} draws | AUROC | with three more figures |\n|---|---|---|")
    for n in (668, 22_000):
        seconds = [drawing(n, 5, asked.draws, figure) for figure in (area, all_figures)]
        print(f"| {n:,} scans of 5 findings | {seconds[0]:.1f} s | {seconds[1]:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
