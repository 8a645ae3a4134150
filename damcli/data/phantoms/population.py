"""Who the phantoms are: patients with several studies, correlated findings, and labels as reports would give them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from damcli.data.labels import CHEXPERT_FINDINGS, COMPETITION
from damcli.data.phantoms.drawing import Anatomy

PREVALENCE = {
    "Cardiomegaly": 0.14,
    "Edema": 0.16,
    "Consolidation": 0.10,
    "Atelectasis": 0.15,
    "Pleural Effusion": 0.22,
}
# How the latent severities go together, rows and columns as in COMPETITION.
CORRELATION = np.array(
    [
        [1.00, 0.60, 0.00, 0.10, 0.25],
        [0.60, 1.00, 0.10, 0.15, 0.40],
        [0.00, 0.10, 1.00, 0.20, 0.15],
        [0.10, 0.15, 0.20, 1.00, 0.55],
        [0.25, 0.40, 0.15, 0.55, 1.00],
    ]
)
PATIENT_SHARE = 0.7  # of a severity's variance that stays with the patient from study to study
BORDER = 0.3  # latent distance from the threshold within which a report may call a finding uncertain


@dataclass(frozen=True)
class Study:
    """One visit. `severity` is what is drawn, in [0, 1] by finding; `margin` how far each lies above its threshold."""

    severity: Mapping[str, float]
    margin: Mapping[str, float]
    device: bool

    def truth(self) -> dict[str, float]:
        """Return 1 or 0 for each of CheXpert's 14 findings, in file order."""
        has = {name: float(self.margin.get(name, -1.0) > 0) for name in CHEXPERT_FINDINGS}
        has["Enlarged Cardiomediastinum"] = has["Cardiomegaly"]
        has["Lung Opacity"] = max(has["Edema"], has["Consolidation"], has["Atelectasis"])
        has["No Finding"] = 1.0 - max(has.values())
        has["Support Devices"] = float(self.device)
        return has

    def reported(self, rng: np.random.Generator) -> dict[str, float]:
        """Return labels as mined from a report: 1, 0, -1 (uncertain, near the threshold) or NaN (not mentioned)."""
        labels = {name: 1.0 if value else math.nan for name, value in self.truth().items()}
        for name in COMPETITION:
            chance = rng.random()
            if abs(self.margin[name]) < BORDER and chance < 0.5:
                labels[name] = -1.0
            elif self.margin[name] <= 0 and chance > 0.65:
                labels[name] = 0.0
        return labels


@dataclass(frozen=True)
class Patient:
    """One drawn patient; `rng` is the stream from which the scans are to be drawn."""

    number: int
    sex: str
    age: int
    anatomy: Anatomy
    studies: tuple[Study, ...]
    rng: np.random.Generator


def patients(first: int, count: int, seed: int, most_studies: int) -> Iterator[Patient]:
    """Yield `count` patients numbered from `first`; each depends on `seed` and its own number only.

    >>> one, = patients(1, 1, seed=0, most_studies=3)
    >>> again, = patients(1, 1, seed=0, most_studies=3)
    >>> one.studies == again.studies
    True
    """
    mixing = np.linalg.cholesky(CORRELATION)
    threshold = np.array([NormalDist().inv_cdf(1 - PREVALENCE[name]) for name in COMPETITION])
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        female = rng.random() < 0.45
        lasting = rng.standard_normal(len(COMPETITION))
        studies = []
        for _ in range(1 + min(most_studies - 1, int(rng.geometric(0.55)) - 1)):
            passing = rng.standard_normal(len(COMPETITION))
            latent = mixing @ (math.sqrt(PATIENT_SHARE) * lasting + math.sqrt(1 - PATIENT_SHARE) * passing)
            margin = dict(zip(COMPETITION, (latent - threshold).tolist(), strict=True))
            # Slight signs begin below the threshold and say only roughly how far along a finding is: the groups
            # overlap, as real ones do.
            signs = (0.35 + 0.45 * (latent - threshold) + rng.normal(0, 0.12, len(COMPETITION))).clip(0, 1)
            severity = dict(zip(COMPETITION, signs.tolist(), strict=True))
            studies.append(Study(severity, margin, device=bool(rng.random() < 0.3)))
        age = int(np.clip(rng.normal(61, 16), 18, 90))
        yield Patient(number, "Female" if female else "Male", age, Anatomy.drawn(rng, female), tuple(studies), rng)
