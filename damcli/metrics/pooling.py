"""Figures of several sites as one, by inverse variance, and how far the sites lie apart.

AUROCs are pooled on the logit scale, on which their intervals are normal. Two answers to two questions:

* the fixed effect, Σ w·x / Σ w with w = 1/s², is a mean of these sites; its interval says nothing of others;
* random effects, w = 1/(s² + τ²), is the mean of the hospitals that these sites are drawn from, and the prediction
  interval is where the next one of them lies.

τ² is Paule and Mandel's: the value at which the weighted spread Q(τ²) is what chance gives, k − 1. It assumes no
distribution, is among the least biased for few sites, and the bounds of its interval solve the same equation with
quantiles of χ² in place of the mean. With it Hartung and Knapp's variance of the mean, never below the ordinary one,
is the ordinary one: Q(τ²)/(k − 1) is 1, or less where τ² is 0. So the interval is that of a t with k − 1 degrees of
freedom.

Sources: Cochran, Biometrics 10 (1954) 101-129; Paule, Mandel, J. Res. Natl. Bur. Stand. 87 (1982) 377-385; Hartung,
Knapp, Stat. Med. 20 (2001) 3875-3889; Higgins, Thompson, Stat. Med. 21 (2002) 1539-1558; Viechtbauer, Stat. Med. 26
(2007) 37-52; Higgins, Thompson, Spiegelhalter, J. R. Statist. Soc. A 172 (2009) 137-159; for Paule and Mandel's τ²:
Veroniki et al., Res. Synth. Methods 7 (2016) 55-79.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from damcli.metrics.delong import Estimate, quantile_of, tail_of

Floats = npt.NDArray[np.float64]
ONE, TWO = "one site only", "two sites only"
# How far from the middle of its interval, on the logit scale, a figure may lie through the rounding of its digits.
ROUNDING = 0.02


@dataclass(frozen=True)
class Pooled:
    """Figures of k sites pooled; what one or two sites cannot say has the reason under `why`.

    `prediction` is about the value of `random`. `q` has k − 1 degrees of freedom and the p-value `p`, both nan for one
    site. `i2` is the share of the spread that chance does not explain, `tau2` the variance of the sites' true figures;
    where only their interval is undefined they have a value and a `why`. `weights` and `random_weights` are shares.
    """

    fixed: Estimate
    random: Estimate
    prediction: Estimate
    q: float
    p: float
    i2: Estimate
    tau2: Estimate
    weights: tuple[float, ...]
    random_weights: tuple[float, ...]


def pool(values: ArrayLike, deviations: ArrayLike, level: float = 0.95) -> Pooled:
    """Pool figures (k,) of any scale with their standard deviations (k,), of sites that share no patient.

    Raises `ValueError` for no site, for other shapes, for a value that is not finite, a deviation that is not above 0,
    and a level outside (0, 1).

    >>> found = pool([0.0, 1.0, 5.0], [1.0, 1.0, 1.0])
    >>> found.fixed.value, found.q, round(found.tau2.value, 6), round(found.i2.value, 6)
    (2.0, 14.0, 6.0, 0.857143)
    """
    tail, k = tail_of(level), np.size(values)
    x, s = np.asarray(values, np.float64), np.asarray(deviations, np.float64)
    if not k or x.shape != (k,) or s.shape != (k,):
        raise ValueError(f"values and deviations must be (k,), one for each site; got {x.shape} and {s.shape}")
    with np.errstate(over="ignore"):
        variances = s**2
    if not (np.isfinite([x, variances]).all() and (s > 0).all() and (variances > 0).all()):
        raise ValueError("values must be finite, and deviations finite and above 0")
    fixed, weights = _mean(x, variances, quantile_of(tail))
    if k == 1:
        none = _undefined(ONE)
        return Pooled(fixed, none, none, math.nan, math.nan, none, none, weights, weights)

    def spread(tau2: float) -> float:
        w = 1 / (variances + tau2)
        return float(w @ (x - w @ x / w.sum()) ** 2)

    def below(tau2: float) -> float:
        """The probability of less spread than there is, if this were τ²: it falls as τ² grows."""
        return 1 - chi2_tail(spread(tau2), k - 1)

    tau2 = _falls_to(spread, k - 1)
    low, high = (_falls_to(below, share) for share in (1 - tail, tail))
    why = "" if high else "the sites lie closer together than chance lets expect"
    random, random_weights = _mean(x, variances + tau2, t_quantile(level, k - 1))
    w = 1 / variances
    chance = float((k - 1) * w.sum() / (w.sum() ** 2 - w @ w))  # the variance of a typical site
    i2, least, most = (bound / (bound + chance) for bound in (tau2, low, high))
    return Pooled(
        fixed,
        random,
        _predicted(random.value, variances, tau2, level),
        spread(0.0),
        chi2_tail(spread(0.0), k - 1),
        Estimate(i2, math.nan, math.nan, why) if why else Estimate(i2, least, most),
        Estimate(tau2, math.nan, math.nan, why) if why else Estimate(tau2, low, high),
        weights,
        random_weights,
    )


def pool_aurocs(aurocs: Sequence[Estimate], levels: Sequence[float], level: float = 0.95) -> Pooled:
    """Pool AUROCs (k,) with intervals of these levels (k,); τ² and Q are of the logits.

    Raises what `pool` and `logit_deviation` raise.

    >>> found = pool_aurocs([Estimate(0.8, 0.7, 0.873), Estimate(0.9, 0.8, 0.953)], [0.95, 0.95])
    >>> round(found.fixed.value, 3), found.prediction.why
    (0.837, 'two sites only')
    """
    deviations = [logit_deviation(each, of) for each, of in zip(aurocs, levels, strict=True)]
    found = pool([_logit(each.value) for each in aurocs], deviations, level)
    return replace(
        found,
        fixed=_as_share(found.fixed),
        random=_as_share(found.random),
        prediction=_as_share(found.prediction),
    )


def logit_deviation(auroc: Estimate, level: float) -> float:
    """Return the standard deviation of an AUROC's logit, from its interval, which is normal on that scale.

    Raises `ValueError` for an AUROC without an interval, for exactly 0 and 1, and for an interval of another kind.

    >>> round(logit_deviation(Estimate(0.5, 0.269, 0.731), 0.95), 2)
    0.51
    """
    value, low, high, _ = auroc
    z = quantile_of(tail_of(level))
    # Of the bounds that nearer to 0.5 has lost fewer digits.
    near, far = (low, high) if value >= 0.5 else (high, low)
    if not (0 < value < 1 and low < value < high and 0 < near < 1):
        raise ValueError("it has no interval around an AUROC strictly between 0 and 1")
    reach, other = abs(_logit(value) - _logit(near)), math.nan
    if 1e-12 < far < 1 - 1e-12:
        other = abs(_logit(value) - _logit(far))
    if abs(reach - other) > ROUNDING * reach:
        raise ValueError("its interval is not normal on the logit scale")
    return reach / z


def chi2_tail(x: float, degrees: int) -> float:
    """Return how likely χ² with so many degrees of freedom is at least `x`. Source: Abramowitz, Stegun, 26.4.4-5.

    >>> round(chi2_tail(3.841459, 1), 6), round(chi2_tail(5.991465, 2), 6)
    (0.05, 0.05)
    """
    if x <= 0:
        return 1.0
    half = x / 2
    powers = np.arange(degrees / 2 - 1, -0.25, -1)
    terms = [math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers.tolist()]
    return min(1.0, math.fsum([math.erfc(math.sqrt(half)) if degrees % 2 else 0.0, *terms]))


def t_quantile(level: float, degrees: int) -> float:
    """Return what Student's t stays within, on either side of 0, with that probability.

    Source: Abramowitz, Stegun, 26.7.3-4.

    >>> round(t_quantile(0.95, 1), 3), round(t_quantile(0.95, 10), 3)
    (12.706, 2.228)
    """

    def outside(t: float) -> float:
        angle = math.atan(t / math.sqrt(degrees))
        odd, term, total = degrees % 2, 1.0, 0.0
        for power in range(odd, degrees - 1, 2):
            total += term * math.cos(angle) ** power
            term *= (power + 1) / (power + 2)
        within = math.sin(angle) * total
        return 1 - (2 / math.pi * (angle + within) if odd else within)

    return _falls_to(outside, 1 - level)


def _mean(x: Floats, variances: Floats, reach: float) -> tuple[Estimate, tuple[float, ...]]:
    """Return the mean weighted by the variances' inverses, `reach` standard deviations around it, and the weights."""
    w = 1 / variances
    value, deviation = float(w @ x / w.sum()), float(w.sum() ** -0.5)
    return Estimate(value, value - reach * deviation, value + reach * deviation), tuple((w / w.sum()).tolist())


def _predicted(value: float, variances: Floats, tau2: float, level: float) -> Estimate:
    """Return where the figure of another site lies around the mean `value`."""
    if len(variances) < 3:
        return _undefined(TWO)
    reach = t_quantile(level, len(variances) - 2) * math.sqrt(tau2 + 1 / float((1 / (variances + tau2)).sum()))
    return Estimate(value, value - reach, value + reach)


def _falls_to(falling: Callable[[float], float], bound: float) -> float:
    """Return the smallest number from 0 on at which a function that falls to 0 is at most `bound`."""
    low, high = 0.0, 1.0
    if falling(low) <= bound:
        return low
    while falling(high) > bound:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if falling(middle) > bound else (low, middle)
    return high


def _undefined(why: str) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, why)


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def _as_share(logit: Estimate) -> Estimate:
    value, low, high = ((1 + math.tanh(each / 2)) / 2 for each in logit[:3])
    return Estimate(value, low, high, logit.why)
