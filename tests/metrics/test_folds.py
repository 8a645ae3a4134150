"""The AUROC within folds: only scans of one fold are compared, and a fold that has none has no part."""

import math

import numpy as np
import pytest

from damcli.metrics import auroc, delong_interval, within_folds


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    targets = (rng.random(90) < 0.4).astype(float)
    return targets, rng.normal(targets), np.arange(90) % 3


def test_it_is_the_mean_of_the_folds_and_does_not_see_how_far_their_scores_lie_apart(scored):
    targets, scores, folds = scored
    mean, each = within_folds(targets, scores, folds)
    alone = [auroc(targets[folds == fold], scores[folds == fold]) for fold in range(3)]
    assert [part.auroc for part in each.values()] == alone
    assert mean.value == pytest.approx(np.mean(alone))
    shifted, _ = within_folds(targets, scores + 100 * folds, folds)
    assert shifted == mean
    assert auroc(targets, scores + 100 * folds) != pytest.approx(auroc(targets, scores))


def test_its_variance_is_that_of_independent_folds(scored):
    targets, scores, folds = scored
    mean, each = within_folds(targets, scores, folds)
    deviation = math.sqrt(sum(float((part.contributions**2).sum()) for part in each.values())) / 3
    reach = 1.959963984540054 * deviation / (mean.value * (1 - mean.value))
    centre = math.log(mean.value / (1 - mean.value))
    assert (mean.low, mean.high) == pytest.approx(tuple(1 / (1 + math.exp(-centre - d)) for d in (-reach, reach)))


def test_one_fold_is_the_plain_auroc(scored):
    targets, scores, _ = scored
    mean, _ = within_folds(targets, scores, np.zeros(90, int))
    assert mean.value == auroc(targets, scores)
    assert (mean.low, mean.high) == pytest.approx(tuple(delong_interval(targets, scores)))


def test_a_fold_without_a_class_has_no_part(scored):
    targets, scores, folds = scored
    targets[folds == 1] = 0
    mean, each = within_folds(targets, scores, folds)
    assert each[1].undefined == "no positives"
    assert mean.value == pytest.approx(np.mean([each[0].auroc, each[2].auroc]))
