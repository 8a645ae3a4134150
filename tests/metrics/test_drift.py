"""Drift: distances against the exact ones, p-values that hold what they promise, and scans that did change."""

import json

import numpy as np
import pytest
from scipy import stats

from damcli.metrics.calibration import Calibration
from damcli.metrics.drift import BOUND, FAR, Reference, Sample, compare, gathered, least_distance, pixel_statistics


def samples(rng, kind):
    m, n = rng.integers(1, 1500, 2)
    a, b = rng.normal(size=m), rng.normal(rng.random() / 2, 1 + rng.random(), n)
    if kind == "ties":
        a, b = np.round(a, 1), np.round(b, 1)
    if kind == "scores":
        a, b = (1 / (1 + np.exp(4 - 3 * x)) for x in (a, b))
    return a, b


@pytest.mark.parametrize("kind", ["any", "ties", "scores"])
def test_the_distance_from_quantiles_is_within_a_400th_of_the_exact_one(kind):
    rng = np.random.default_rng(3)
    worst = 0
    for _ in range(150):
        a, b = samples(rng, kind)
        error = Sample.of(a).distance(b) - stats.ks_2samp(a, b).statistic
        assert error <= BOUND + 1e-12
        worst = min(worst, error)
    assert worst >= -BOUND - 0.002, "and below it by no more than that and what lies within 1/10,000"


@pytest.mark.parametrize("m", [1, 2, 7, 199, 200])
def test_of_up_to_200_values_the_distance_is_exact(m):
    rng = np.random.default_rng(m)
    a, b = rng.random(m).round(3), rng.random(90).round(3)
    grid = np.union1d(a, b)
    brute = max(abs((a <= x).mean() - (b <= x).mean()) for x in grid)
    assert Sample.of(a).distance(b) == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize("m", [1, 60, 5000])
def test_a_sample_is_at_no_distance_from_itself_also_as_float32_and_where_all_is_one_value(m):
    rng = np.random.default_rng(1)
    values = rng.random(m)
    kept = Sample.of(values)
    assert kept.distance(values) <= BOUND
    assert kept.distance(values.astype(np.float32)) <= BOUND
    assert Sample.of(np.full(m, 1 / 3)).distance(np.full(40, np.float32(1) / np.float32(3))) == 0
    assert kept.distance(values + 2) == 1
    assert Sample.model_validate_json(kept.model_dump_json()) == kept


@pytest.mark.parametrize("m", [40, 1000])
def test_p_values_are_those_of_scipy_where_nothing_is_lost(m):
    rng = np.random.default_rng(5)
    for shift in (0, 0.1, 0.3):
        a, b = rng.normal(size=m), rng.normal(shift, 1, 120)
        exact = stats.ks_2samp(a, b, method="exact")
        p = Sample.of(a).p(exact.statistic, 120)
        slack = 0.02 if m <= 200 else 0.1
        assert p == pytest.approx(exact.pvalue, abs=slack)


@pytest.mark.parametrize(("m", "n"), [(150, 80), (1000, 500), (1000, 20)])
def test_without_drift_p_values_are_small_as_seldom_as_they_say(m, n):
    rng = np.random.default_rng(0)
    p = []
    for _ in range(400):
        kept, now = Sample.of(rng.beta(1, 9, m)), rng.beta(1, 9, n)
        p.append(kept.p(kept.distance(now), n))
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.array(p) < level)
        assert share <= level + 3 * np.sqrt(level * (1 - level) / len(p))
        assert share >= 0.5 * level, "and not so seldom that nothing is ever found"


def test_without_drift_almost_nothing_is_called_shifted():
    rng = np.random.default_rng(8)
    called = 0
    for _ in range(100):
        kept = {f"f{k}": Sample.of(rng.beta(1, 9, 300)) for k in range(6)}
        reference = Reference(scans=300, scores=kept, pixels={})
        called += any(shift.shifted for shift in compare(reference, {name: rng.beta(1, 9, 150) for name in kept}, {}))
    assert called <= 10, "5 % expected"


def films(rng, number, size=48):
    """Something like a chest film: a bright body on black, grey inside, grain on top."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = np.clip(1.6 - 1.5 * np.hypot(x * 0.9, y * 0.8), 0, 1)
    lungs = 1 - 0.6 * (np.exp(-((abs(x) - 0.4) ** 2) * 20 - y**2 * 3))
    strength = rng.normal(170, 12, (number, 1, 1))
    grain = rng.normal(0, 8, (number, size, size))
    return np.clip(strength * body * lungs + grain, 0, 255).astype(np.uint8)


def blurred(images):
    padded = np.pad(images.astype(float), ((0, 0), (1, 1), (1, 1)), mode="edge")
    return np.mean([padded[:, i : i + 48, j : j + 48] for i in range(3) for j in range(3)], axis=0).astype(np.uint8)


CHANGES = {
    "inverted": (lambda images: 255 - images, {"mean", "dark", "bright"}),
    "brighter": (lambda images: np.clip(images + 25.0, 0, 255).astype(np.uint8), {"mean"}),
    "blurred": (blurred, {"sharpness"}),
    "same": (lambda images: images, set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_scans_that_changed_are_told_and_the_statistic_says_how(change):
    rng = np.random.default_rng(4)
    alter, expected = CHANGES[change]
    pixels = {name: Sample.of(values) for name, values in pixel_statistics(films(rng, 300)).items()}
    found = compare(Reference(scans=300, scores={}, pixels=pixels), {}, pixel_statistics(alter(films(rng, 60))))
    shifted = {shift.name for shift in found if shift.shifted}
    assert shifted >= expected
    assert bool(shifted) == bool(expected)
    for shift in found:
        assert shift.shifted == (shift.adjusted < 0.05 and shift.distance >= FAR)
        assert shift.low <= shift.now <= shift.high


def test_pixel_statistics_are_those_of_each_image_by_itself():
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 7), np.uint8)
    found = pixel_statistics(images)
    for row, image in enumerate(images.astype(float)):
        assert found["mean"][row] == pytest.approx(image.mean() / 255, abs=1e-6)
        assert found["deviation"][row] == pytest.approx(image.std() / 255, abs=1e-6)
        assert found["dark"][row] == (image < 12.75).mean()
        assert found["bright"][row] == (image > 242.25).mean()
        laplacian = [
            abs(image[y - 1, x] + image[y + 1, x] + image[y, x - 1] + image[y, x + 1] - 4 * image[y, x])
            for y in range(1, 8)
            for x in range(1, 6)
        ]
        assert found["sharpness"][row] == pytest.approx(np.mean(laplacian) / 255, abs=1e-6)
    parts = gathered([pixel_statistics(images[:1]), pixel_statistics(images[1:])])
    for name, values in found.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-6)


def test_a_colour_cast_that_leaves_the_brightness_is_seen_in_its_channels():
    rng = np.random.default_rng(0)
    before, now = rng.integers(60, 200, (2, 120, 8, 8, 3), np.uint8)
    cast = now + np.array([40, 0, -40])
    pixels = {name: Sample.of(values) for name, values in pixel_statistics(before).items()}
    assert list(pixels) == ["mean", "deviation", "dark", "bright", "sharpness", "red", "green", "blue"]
    found = compare(Reference(scans=120, scores={}, pixels=pixels), {}, pixel_statistics(cast.astype(np.uint8)))
    assert {"red", "blue"} <= {shift.name for shift in found if shift.shifted}
    assert not {"mean", "green"} & {shift.name for shift in found if shift.shifted}


def test_a_reference_of_scores_is_calibrated_by_its_quantiles():
    scores = np.random.default_rng(2).beta(1, 5, 3000)
    steps = Calibration(method="isotonic", knots_x=(0.05, 0.1, 0.3), knots_y=(0.0, 0.2, 0.9))
    kept = Reference(scans=3000, scores={"A": Sample.of(scores), "B": Sample.of(scores)}, pixels={})
    found = kept.calibrated({"A": steps})
    assert found.scores["B"] == kept.scores["B"]
    assert found.scores["A"].distance(steps.apply(scores)) <= BOUND + 1 / 3000, "a rounded value may cross another"
    np.testing.assert_allclose(found.scores["A"].quantiles, Sample.of(steps.apply(scores)).quantiles, atol=1e-4)
    assert found.scores["A"].mean == pytest.approx(steps.apply(scores).mean(), abs=BOUND * 0.9)


def test_what_is_kept_says_nothing_of_a_single_scan():
    kept = Reference(scans=5000, scores={"A": Sample.of(np.random.default_rng(0).random(5000))}, pixels={})
    document = json.loads(kept.model_dump_json())
    assert len(document["scores"]["A"]["quantiles"]) == 201
    assert all(value == float(f"{value:.6g}") for value in document["scores"]["A"]["quantiles"])


def test_the_distance_that_can_be_told_is_the_critical_one():
    kept = Sample.of(np.arange(200))
    least = least_distance(200, 90)
    assert kept.p(least, 90) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("values", [[], [np.nan], [1, np.inf]])
def test_what_is_no_sample_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        Sample.of(values)
    with pytest.raises(ValueError, match="finite"):
        Sample.of([1, 2]).distance(values)


def test_one_scan_has_a_mean_without_an_interval_and_what_the_reference_lacks_is_left_out():
    reference = Reference(scans=3, scores={"A": Sample.of([0.1, 0.2, 0.3]), "C": Sample.of([1])}, pixels={})
    [shift] = compare(reference, {"A": [0.25], "B": [0.5]}, {"mean": [1.0]})
    assert (shift.kind, shift.name, shift.now, shift.shifted) == ("score", "A", 0.25, False)
    assert np.isnan(shift.low)
