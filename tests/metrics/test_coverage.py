"""How often intervals hold the truth, by simulation. Scores are binormal, so the true area is Φ(gap/√2)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from damcli.metrics import bootstrap_interval, compare, delong_interval
from damcli.metrics.intervals import bootstrap, quantiles
from damcli.metrics.ranking import Ranking, area

pytestmark = pytest.mark.slow


def true_area(gap: float) -> float:
    return (1 + math.erf(gap / 2)) / 2


def patients(
    rng: np.random.Generator, positives: int, gap: float, negatives: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scans of patients, 2.5 each on average: one label per patient, and most of the score's variance with it."""
    truth = np.repeat([1.0, 0.0], [positives, negatives or 3 * positives])
    member = np.repeat(np.arange(len(truth)), 1 + rng.poisson(1.5, len(truth)))
    targets = truth[member]
    scores = gap * targets + 0.8 * rng.normal(size=len(truth))[member] + 0.6 * rng.normal(size=len(member))
    return targets, scores, member


@pytest.mark.parametrize(("negatives", "gap"), [(50, 1.0), (500, 1.0), (500, 2.0)])
def test_delong_covers_with_fifty_positives(negatives: int, gap: float) -> None:
    rng = np.random.default_rng(1)
    targets = np.repeat([1.0, 0.0], [50, negatives])
    found = [delong_interval(targets, rng.normal(gap * targets)) for _ in range(2000)]
    assert 0.93 <= np.mean([low <= true_area(gap) <= high for low, high in found]) <= 0.97


@pytest.mark.parametrize(("positives", "gap"), [(30, 1.0), (30, 2.0), (100, 1.0)])
def test_drawing_patients_covers_where_taking_scans_as_independent_does_not(positives: int, gap: float) -> None:
    rng = np.random.default_rng(2)
    held = []
    for seed in range(400):
        targets, scores, member = patients(rng, positives, gap)
        drawn = bootstrap_interval(targets, scores, member, draws=500, seed=seed)
        alone = delong_interval(targets, scores)
        held.append([low <= true_area(gap) <= high for low, high in (drawn[1:3], alone)])
    by_patient, by_scan = np.mean(held, axis=0)
    assert 0.91 <= by_patient <= 0.98
    assert by_scan < 0.88
    assert by_patient - by_scan > 0.07


def test_with_few_patients_the_logit_scale_covers_better_than_the_quantiles() -> None:
    rng = np.random.default_rng(3)
    held, truth = [], true_area(2.0)
    for seed in range(400):
        targets, scores, member = patients(rng, 10, 2.0)
        ranking = Ranking.of(targets, scores)
        drawn = np.concatenate(list(bootstrap([ranking], area, member, len(member), 500, seed)))[:, 0, 0]
        plain = quantiles(drawn, float(area(ranking, ranking.counts())[0]))
        ours = bootstrap_interval(targets, scores, member, draws=500, seed=seed)
        held.append([low <= truth <= high for low, high in (ours[1:3], plain)])
    ours, plain = np.mean(held, axis=0)
    assert 0.91 <= ours <= 0.98
    assert ours - plain > 0.02


def test_equal_scores_are_called_different_as_often_as_asked() -> None:
    """Two readings of the same patients, equally good: p < 0.05 in about 5 of 100."""
    rng = np.random.default_rng(4)
    found, alone = [], []
    for seed in range(400):
        targets, a, member = patients(rng, 40, 1.0)
        b = a + 0.8 * rng.normal(size=member.max() + 1)[member]
        a = a + 0.8 * rng.normal(size=member.max() + 1)[member]
        found.append(compare(targets, a, b, member, draws=500, seed=seed).p < 0.05)
        alone.append(compare(targets, a, b).p < 0.05)
    assert 0.025 <= np.mean(found) <= 0.085
    assert np.mean(alone) > 0.12
