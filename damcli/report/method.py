"""How the intervals of an evaluation are made: by formula for what is independent, else over patients or studies."""

from __future__ import annotations

from dataclasses import dataclass

from damcli.errors import DataError
from damcli.report.evaluation import Evaluation, Unit

DRAWS = 2000
DELONG = "DeLong, normal on the logit scale; at exactly 0 or 1 the exact bound of disjoint pairs"


@dataclass(frozen=True)
class Method:
    """How intervals are made: `cluster` (patient, study) is whose scans are drawn together; None: each for itself."""

    cluster: str | None = None
    draws: int = DRAWS
    seed: int = 0

    @classmethod
    def of(cls, evaluation: Evaluation, asked: str | None = None, draws: int = DRAWS, seed: int = 0) -> Method:
        """Return how `asked` (patient, study, none) is done; by patient where they repeat, unless said otherwise.

        Raises `DataError` where it is not known which rows belong together.
        """
        cluster = asked if asked is not None else "patient" if evaluation.patients_repeat else "none"
        if cluster == "none":
            return cls(None, draws, seed)
        ids = evaluation.truth.patients if cluster == "patient" else evaluation.truth.studies
        if ids is None or not any(ids):
            raise DataError(
                f"the labels do not say which {cluster} a scan is of",
                where=evaluation.truth.path,
                fix=f"give them a column {cluster}, or leave out --cluster",
            )
        return cls(cluster, draws, seed)

    def groups(self, evaluation: Evaluation) -> list[str] | None:
        """Return for each row whose it is; "" belongs to no other."""
        truth = evaluation.truth
        if self.cluster is None:
            return None
        if self.cluster == "patient":
            return truth.patients
        # Studies may be numbered anew for every patient.
        studies = truth.studies or []
        return [f"{p}/{s}" if s else "" for p, s in zip(truth.patients or studies, studies, strict=True)]

    def auroc(self, unit: str) -> str:
        """Say how an AUROC's interval is made."""
        return f"{DELONG}; {Unit(unit).plural} taken as independent" if self.cluster is None else self.others(unit)

    def others(self, unit: str) -> str:
        """Say how the other figures' intervals are made."""
        drawn = f"{self.draws:,} draws of {Unit(self.cluster or unit).plural} with replacement (seed {self.seed})"
        # What counts independent rows has a formula (`metrics.operating.measure`).
        shares = "" if self.cluster else "; prevalences and operating points after Wilson, or Mercaldo"
        return f"bootstrap, {drawn}, normal on the logit scale; differences and bands between quantiles{shares}"
