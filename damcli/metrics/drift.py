"""Whether scans differ from those that a model was made on, by their scores and their pixels; no labels are needed.

A reference keeps quantiles of each score and statistic by itself: order statistics at levels i/200, rounded, and how
many scans they are of. No scan is named in it, and no two values of one stand together; the distribution function that
they stand for is known to 1/400 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from damcli.config import Strict
from damcli.metrics.comparing import holm
from damcli.metrics.delong import quantile_of, tail_of

if TYPE_CHECKING:
    from damcli.metrics.calibration import Calibration

SCHEMA_VERSION = 1
LEVELS = 200
# Half of what the distribution function may gain between two quantiles of a sample larger than LEVELS.
BOUND = 1 / (2 * LEVELS)
DIGITS = 6  # significant ones that a quantile keeps: a calibration makes what is lost larger
# Numbers that differ by less, relatively, count as equal: rounding and float32 move them so far.
EQUAL = 1e-4
ALPHA, FAR = 0.05, 0.1
KOLMOGOROV = 1.3581  # what Kolmogorov's statistic exceeds with probability ALPHA
DARK, BRIGHT = 0.05 * 255, 0.95 * 255
Floats = NDArray[np.float64]


class Sample(Strict):
    """A sample by its size and 201 of its values: the smallest, those that i/200 of it do not exceed, the largest."""

    count: int = Field(ge=1)
    quantiles: tuple[float, ...] = Field(min_length=LEVELS + 1, max_length=LEVELS + 1)

    @classmethod
    def of(cls, values: ArrayLike) -> Sample:
        """Return what is kept of `values` (n,): every quantile is one of them, rounded to six digits.

        Raises `ValueError` for none, and for what is not finite.

        >>> Sample.of([3, 1, 2]).quantiles[::50]
        (1.0, 1.0, 2.0, 3.0, 3.0)
        """
        ordered = _sorted(values)
        ranks = -(-np.arange(LEVELS + 1) * len(ordered) // LEVELS)  # rounded up, in integers
        chosen = ordered[np.maximum(ranks, 1) - 1]
        return cls(count=len(ordered), quantiles=_rounded(chosen))

    @property
    def mean(self) -> float:
        """The mean, to 1/400 of the sample's range."""
        return float((np.sum(self.quantiles[1:]) + np.sum(self.quantiles[:-1])) / (2 * LEVELS))

    def mapped(self, function: Callable[[Floats], Floats]) -> Sample:
        """Return the sample as it is after a `function` that never falls, such as a calibration.

        >>> Sample.of([1, 2, 4]).mapped(np.sqrt) == Sample.of(np.sqrt([1, 2, 4]))
        True
        """
        return Sample(count=self.count, quantiles=_rounded(function(np.array(self.quantiles))))

    def distance(self, values: ArrayLike) -> float:
        """Return the Kolmogorov–Smirnov distance of `values` (n,) from the sample, as far as it is certain from above.

        It is at most 1/400 more than that of the whole sample, and less by at most that and the share of either that
        lies within 1/10,000 of a value, which counts as equal to it. Up to 200 values are kept whole, and there 1/400
        is 0. Raises `ValueError` for no values, and for what is not finite.

        >>> Sample.of([1, 2, 3, 4]).distance([3, 4, 5, 6])
        0.5
        """
        ordered = _sorted(values)
        n, apart = len(ordered), np.abs(ordered) * EQUAL
        kept = np.array(self.quantiles)
        upper = self._below(np.searchsorted(kept, ordered + apart, "right") - 1)
        lower = self._below(np.searchsorted(kept, ordered - apart, "left") - 1)
        # Ties in `ordered` take the counts of their first and last, so that a step is taken at once.
        at_most = np.searchsorted(ordered, ordered, "right") / n
        under = np.searchsorted(ordered, ordered, "left") / n
        return float(max((at_most - upper).max(), (lower - under).max(), 0.0))

    def p(self, distance: float, count: int) -> float:
        """Return the p-value of such a distance of `count` values that are drawn like the sample.

        All values are taken as independent. Of the distance, what the quantiles leave open is taken off. Source:
        Stephens, J. R. Statist. Soc. B 32 (1970) 115-122, for two samples.

        >>> round(Sample.of(range(100)).p(0.19, 100), 2)
        0.05
        """
        root = math.sqrt(self.count * count / (self.count + count))
        least = distance if self.count <= LEVELS else max(0.0, distance - BOUND)
        return _kolmogorov((root + 0.12 + 0.11 / root) * least)

    def _below(self, index: NDArray[np.intp]) -> Floats:
        """Return the distribution function where `index` is that of the last quantile not above, −1 for none.

        Between two quantiles it takes whole multiples of 1/count: the middle of the first and the last of them.
        """
        least = -(-index * self.count // LEVELS)
        most = np.minimum(-(-(index + 1) * self.count // LEVELS) - 1, self.count)
        return np.asarray(np.where(index < 0, 0, least + np.maximum(most, least)) / (2 * self.count), np.float64)


class Reference(Strict):
    """What scans, and a model's scores of them, were like when it was made: those of the tune part."""

    schema_version: int = SCHEMA_VERSION
    scans: int = Field(description="that the scores are of")
    scores: dict[str, Sample] = Field(description="by finding")
    pixels: dict[str, Sample] = Field(description="by statistic")
    views: int = Field(default=1, description="of a scan, its score being their mean")
    weights_sha256: str | None = Field(default=None, description="of the network that scored; None in a model")

    def calibrated(self, calibration: Mapping[str, Calibration]) -> Reference:
        """Return the reference of a model that calibrates its scores so, by finding."""
        mapped = {
            name: sample.mapped(calibration[name].apply) if name in calibration else sample
            for name, sample in self.scores.items()
        }
        return self.model_copy(update={"scores": mapped})


class Shift(NamedTuple):
    """One score or statistic of scans beside the reference: how far apart the two distributions are.

    `kind` is "score" or "pixels", `adjusted` the p-value corrected for the number of comparisons; `low` and `high` are
    the bounds of the mean now, nan for a single scan.
    """

    kind: str
    name: str
    distance: float
    p: float
    adjusted: float
    before: float
    now: float
    low: float
    high: float
    shifted: bool


def compare(
    reference: Reference, scores: Mapping[str, ArrayLike], pixels: Mapping[str, ArrayLike], level: float = 0.95
) -> list[Shift]:
    """Compare the scores (by finding) and pixel statistics (by name) of scans, each (n,), with those of the reference.

    Shifted is what is both certain and large: an adjusted p-value (Holm) below 0.05, and a distance of at least 0.1.
    Scans are taken as independent, so where a patient has many of them, p-values are too small and intervals too
    narrow. What the reference does not have is left out. Raises `ValueError` for no scans, and for what is not finite.

    >>> before = Reference(scans=100, scores={"Edema": Sample.of(np.linspace(0, 1, 100))}, pixels={})
    >>> [shift] = compare(before, {"Edema": np.linspace(0.5, 1, 80)}, {})
    >>> shift.shifted, round(shift.distance, 2), shift.adjusted < 1e-6
    (True, 0.5, True)
    """
    pairs = [("score", name, sample, scores[name]) for name, sample in reference.scores.items() if name in scores]
    pairs += [("pixels", name, sample, pixels[name]) for name, sample in reference.pixels.items() if name in pixels]
    distances = [sample.distance(values) for _, _, sample, values in pairs]
    p = [sample.p(distance, np.size(values)) for distance, (_, _, sample, values) in zip(distances, pairs, strict=True)]
    shifts = []
    for (kind, name, sample, values), distance, one, adjusted in zip(pairs, distances, p, holm(p), strict=True):
        shifted = adjusted < ALPHA and distance >= FAR
        mean = _mean(values, level)
        shifts.append(Shift(kind, name, distance, one, adjusted, sample.mean, *mean, shifted))
    return shifts


def least_distance(before: int, now: int) -> float:
    """Return the distance below which samples of these sizes cannot be told from the same population's, alone at 0.05.

    >>> round(least_distance(1000, 1000), 3), round(least_distance(1000, 20), 2)
    (0.06, 0.3)
    """
    root = math.sqrt(before * now / (before + now))
    return KOLMOGOROV / (root + 0.12 + 0.11 / root)


def pixel_statistics(images: NDArray[np.uint8]) -> dict[str, Floats]:
    """Return what tells scans of one machine from another's, by name, each float64 (n,): of grey, or the mean of RGB.

    `images` are uint8 (n,H,W) or (n,H,W,3). mean and deviation are shares of white; dark and bright the shares of
    pixels below 5 and above 95 % of it; sharpness the mean size of the Laplacian, in shares of white, 0 where an image
    has no inner pixel. Colour images also have the mean of each channel.

    >>> found = pixel_statistics(np.array([[[0, 255], [255, 255]]], np.uint8))
    >>> {name: float(value[0]) for name, value in found.items() if name != "deviation"}
    {'mean': 0.75, 'dark': 0.25, 'bright': 0.75, 'sharpness': 0.0}
    """
    planes = images.astype(np.float32)
    grey = planes if planes.ndim == 3 else planes.mean(axis=3)
    inner = grey[:, 1:-1, 1:-1]
    laplacian = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * inner
    pixels = max(1, inner.shape[1] * inner.shape[2])
    sides = (1, 2)
    found = {
        "mean": grey.mean(axis=sides, dtype=np.float64) / 255,
        "deviation": grey.std(axis=sides, dtype=np.float64) / 255,
        "dark": (grey < DARK).mean(axis=sides),
        "bright": (grey > BRIGHT).mean(axis=sides),
        "sharpness": np.abs(laplacian).sum(axis=sides, dtype=np.float64) / (255 * pixels),
    }
    if planes.ndim == 4:
        found |= {
            name: planes[..., k].mean(axis=sides, dtype=np.float64) / 255
            for k, name in enumerate(("red", "green", "blue"))
        }
    return found


def gathered(parts: Iterable[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Return the statistics of several lots of scans as one; {} of none."""
    lots = list(parts)
    return {name: np.concatenate([lot[name] for lot in lots]) for name in (lots[0] if lots else ())}


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())


def _sorted(values: ArrayLike) -> Floats:
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    if not len(ordered) or not np.isfinite(ordered).all():
        raise ValueError("a sample must have values, all of them finite")
    return ordered


def _mean(values: ArrayLike, level: float) -> tuple[float, float, float]:
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, math.nan, math.nan
    reach = quantile_of(tail_of(level)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return mean, mean - reach, mean + reach


def _kolmogorov(x: float) -> float:
    """Return the probability that Kolmogorov's statistic exceeds `x`."""
    if x < 0.2:  # where it is 1 to 12 digits, and the series converges slowly
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * math.fsum(terms)))
