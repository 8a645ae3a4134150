"""What must not be concluded from an evaluation: of all that may be said, what applies to this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from damcli.report.evaluation import Unit

# With fewer scans of a class an interval is wide, and says little of how the next ones will fare.
FEW = 30


class Caveat(NamedTuple):
    """A conclusion that the figures do not bear, and why."""

    claim: str
    why: str


def of(document: Mapping[str, Any], leaks: bool = False, gallery: bool = False) -> list[Caveat]:
    """Return what must not be concluded from `document`, the content of `metrics.json`, the gravest first.

    `leaks` says whether the dataset's audit found any, `gallery` whether single scans are shown.

    >>> figure = {"value": 0.9, "low": 0.85, "high": 0.94, "why": None}
    >>> finding = {"positives": 80, "negatives": 200, "uncertain": 3, "auroc": figure}
    >>> finding |= {"operating": None, "calibration": None}
    >>> document = {"findings": {"Edema": finding}, "unit": {"by": "scan"}, "units": 283, "patients": 283, "failed": 0}
    >>> document |= {"selection": {"used": False}, "interval": {"cluster": None, "level": 0.95}}
    >>> document |= {"comparison": None, "readers": None, "subgroups": [], "gates": []}
    >>> [caveat.claim for caveat in of(document)][0]
    'That it does as well on doubtful cases'
    """
    return [*_of_the_scans(document, leaks), *_of_the_figures(document), *_of_the_parts(document, gallery), *ALWAYS]


ALWAYS = (
    Caveat(
        "That it will be so elsewhere",
        "An interval covers which patients happened to be in this sample, and nothing else. Another hospital, "
        "another device, another mix of patients, another year or another way of labelling moves the figure by an "
        "amount that no number on this page bounds; nor does one cover that the same training with another seed "
        "gives another network. That takes data from there.",
    ),
    Caveat(
        "That the labels are the truth",
        "Every figure measures agreement with the labels named above. Where these were taken from reports by a "
        "program, or read by one person, their errors are in the figures, and in no interval.",
    ),
    Caveat(
        "That the model may be used on patients",
        "This is a measurement on stored scans. It is no clinical study, shows no benefit to anyone, and makes the "
        "model no medical device.",
    ),
)


def _of_the_scans(document: Mapping[str, Any], leaks: bool) -> Iterator[Caveat]:
    used, unit = document["selection"]["used"], Unit(document["unit"]["by"]).plural
    if used:
        yield Caveat(
            "How well the model does on scans that it has not seen",
            "These scans had a part in making it, so every figure here is flattered, and the intervals with it: by "
            "how much cannot be told from them. Evaluate on scans that were set aside before the training.",
        )
    elif used is None:
        yield Caveat(
            "That the model had not seen these scans",
            "Whether they, or others of the same patients, had a part in making it is not known. If so, the figures "
            "are too good.",
        )
    if leaks:
        yield Caveat(
            "That the model recognises the disease and not the patient",
            "The dataset's audit found leaks between its parts, listed above: figures on scans that leak show memory.",
        )
    patients = document["patients"]
    if document["interval"]["cluster"] is None and (patients is None or patients < document["units"]):
        known = "whether patients repeat is not known" if patients is None else f"they are of {patients:,} patients"
        yield Caveat(
            "That the intervals are wide enough",
            f"They take the {document['units']:,} {unit} as independent, and {known}. Scans of one patient are "
            "alike, so the intervals are narrower than they should be.",
        )
    if document["failed"]:
        yield Caveat(
            "That every scan gets a score",
            f"{document['failed']:,} scans could not be scored and are in none of the figures. In use they would be "
            "cases without an answer.",
        )
    uncertain = {name: each["uncertain"] for name, each in document["findings"].items() if each["uncertain"]}
    if uncertain:
        yield Caveat(
            "That it does as well on doubtful cases",
            f"Uncertain labels are left out ({_listed(uncertain)}). They tend to be the hard cases, so the figures "
            "are those of an easier sample.",
        )


def _of_the_figures(document: Mapping[str, Any]) -> Iterator[Caveat]:
    findings = document["findings"]
    undefined = [name for name, each in findings.items() if each["auroc"]["value"] is None]
    if undefined:
        yield Caveat(
            f"Anything about {_and(undefined)}",
            "There is no figure of it here, for the reason in the table. Not measured is not the same as good, and "
            "means over findings leave it out.",
        )
    small = {
        name: f"{each['positives']:,} and {each['negatives']:,}"
        for name, each in findings.items()
        if each["auroc"]["value"] is not None and min(each["positives"], each["negatives"]) < FEW
    }
    if small:
        yield Caveat(
            f"Much about {_and(list(small))}",
            f"It has fewer than {FEW} positives or negatives ({_listed(small)}): the interval, not the figure, is "
            "the result, and a few other scans would have given another one.",
        )
    calibrated = [name for name, each in findings.items() if _chosen(each)]
    raw = [name for name in findings if name not in calibrated]
    if raw:
        some = "" if not calibrated else f" (of {_and(raw)})"
        yield Caveat(
            f"That the score of a scan is the probability of the finding{some}",
            "It ranks scans. A score of 0.9 does not mean that nine in ten such scans have the finding, unless the "
            "scores are calibrated, and these are not.",
        )
    if calibrated:
        yield Caveat(
            f"That calibrated scores{'' if not raw else f' (of {_and(calibrated)})'} are probabilities everywhere",
            "They were fitted on the tune part, whose prevalence they carry with them. Where the finding is rarer or "
            "more common they are wrong, and have to be fitted anew.",
        )
    yield Caveat(
        "That an AUROC is an accuracy",
        "An AUROC of 0.90 says that a random scan with the finding has a higher score than a random one without it "
        "in 90 of 100 pairs. It says nothing of how many calls are right: that depends on the threshold and on the "
        "prevalence.",
    )
    yield Caveat(
        "That average precisions can be compared across findings or datasets",
        "They rise and fall with the prevalence, at the same quality of ranking.",
    )
    defined = len(findings) - len(undefined)
    if defined > 1:
        expected = defined * (1 - document["interval"]["level"])
        yield Caveat(
            "That all intervals hold at once, or that the best finding is as good as it looks",
            f"Each interval is for one figure. Of {defined} such intervals {expected:.2g} miss their value in "
            "the long run, and the highest of several figures is, in part, the luckiest. The mean over findings "
            "hides the weakest one.",
        )


def _of_the_parts(document: Mapping[str, Any], gallery: bool) -> Iterator[Caveat]:
    if any(each["operating"] for each in document["findings"].values()):
        yield Caveat(
            "That a threshold keeps its sensitivity, or that PPV and NPV travel",
            "Thresholds were chosen on other scans than those counted here, and give other shares at every site. PPV "
            "and NPV hold at the prevalence that stands beside them; where the finding is rarer, most alarms may be "
            "false.",
        )
    if document["comparison"]:
        yield Caveat(
            "That two models are equal because p is large",
            "The interval of the difference says what these scans leave possible. A small p, after correction for "
            "the number of findings, says that the difference is not chance here; not that it matters.",
        )
    if document["readers"]:
        yield Caveat(
            "That the model is better than radiologists",
            "Each reader is one point, of a few people, on these scans, without what a clinic knows of a patient. A "
            "reader below the curve might have called more with another habit; beaten is a count, and no test.",
        )
    if document["subgroups"]:
        small = sorted(
            {
                f"{column['column']} {group['group']}"
                for column in document["subgroups"]
                for group in column["groups"]
                if any(each["small"] for each in group["findings"].values())
            }
        )
        few = f" No claim can be made of groups marked small ({_and(small)})." if small else ""
        yield Caveat(
            "That the model is fair where no gap is seen",
            "Groups are smaller than the whole and their intervals wider, so a gap that matters may not show; and "
            f"equal AUROCs are compatible with unequal sensitivities at one threshold.{few}",
        )
    if document["gates"]:
        yield Caveat(
            "That a gate that is met is a proof",
            "It bounds a figure of these scans. Gates written, or tried again, after the figures were seen bound "
            "nothing.",
        )
    if gallery:
        yield Caveat(
            "What the model looks at, from the gallery",
            "The scans shown are a choice, not a sample. A heat map shows where the score reacts, not why, and one "
            "that lies in the right place does not make the call right.",
        )


def _chosen(finding: Mapping[str, Any]) -> bool:
    return bool(finding["calibration"]) and finding["calibration"]["chosen"] != "none"


def _listed(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
