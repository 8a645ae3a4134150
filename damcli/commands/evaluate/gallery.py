"""The scans that were called most surely, rightly and wrongly, with heat maps of where the network saw the finding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from damcli import console
from damcli.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from damcli.data.store import Dataset
    from damcli.deepauc.network import Classifier
    from damcli.report.evaluation import Evaluation
    from damcli.report.page import GalleryItem

SIDE = 320  # pixels of a picture at most
NO_NETWORK = {
    "model": "an exported model has no gradients (name its run instead)",
    "folds": "each scan was scored by the network of its fold (name one of the members instead)",
    "scores": "scores in a table come without their network",
}


class Pick(NamedTuple):
    """A scan of the gallery: `row` is its place among those that were scored."""

    finding: str
    kind: Literal["right", "wrong"]
    row: int


def pick(
    truth: npt.NDArray[np.float64], scores: npt.NDArray[np.floating], findings: Sequence[str], number: int = 4
) -> list[Pick]:
    """Return the most confident right and wrong scans of every finding, at most `number` of each kind.

    `truth` (n, K) holds 1, 0 or nan (not shown), `scores` (n, K) are finite. Right are the positives with the highest
    scores, each above the median of the negatives. Wrong are, by turns, the positives with the lowest scores and the
    negatives with the highest, as far as they are ranked wrongly: a positive not above every negative, a negative not
    below every positive. No scan is both; a finding without positives or without negatives has neither. Among equal
    scores the earlier row is taken.

    >>> import numpy as np
    >>> picks = pick(np.array([[1.0], [1], [0], [0]]), np.array([[0.9], [0.2], [0.4], [0.1]]), ["Edema"])
    >>> [(kind, row) for _, kind, row in picks]
    [('right', 0), ('wrong', 1), ('wrong', 2)]
    """
    import numpy as np

    picks: list[Pick] = []
    for finding, labels, values in zip(findings, truth.T, scores.T, strict=True):
        positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        falling = positives[np.argsort(-values[positives], kind="stable")]
        highest = negatives[np.argsort(-values[negatives], kind="stable")]
        lowest = positives[np.argsort(values[positives], kind="stable")]
        usual = np.median(values[negatives]) if len(negatives) else np.inf
        right = falling[values[falling] > usual][:number]
        missed = lowest[(values[lowest] <= values[negatives].max(initial=-np.inf)) & ~np.isin(lowest, right)]
        alarms = highest[values[highest] >= values[positives].min(initial=np.inf)]
        wrong = [row for turn in range(number) for rows in (missed, alarms) for row in rows[turn : turn + 1]][:number]
        picks += [Pick(finding, "right", int(row)) for row in right]
        picks += [Pick(finding, "wrong", int(row)) for row in wrong]
    return picks


def check(kind: str, on: Path) -> None:
    """Raise `UsageError` where there are no images to show, `MachineError` where a run's heat maps lack captum."""
    if not on.is_dir():
        raise UsageError("a table of labels has no images to show", where="--gallery", fix="name a DATASET")
    if kind == "run":
        from damcli.deepauc import heatmaps

        heatmaps.check()


def gallery(evaluation: Evaluation, device: str = "auto", number: int = 4) -> tuple[list[GalleryItem], tuple[str, ...]]:
    """Return the pictures of an evaluation scan by scan (not yet by study or patient), and what is to be said of them.

    The pictures are PNGs of the dataset's pixels, at most 320 pixels wide, with nothing that says whose they are;
    only what is burned into the pixels is there too. With a run, each has a second one with the heat map
    (`deepauc.heatmaps`) of its finding laid over its grey values: where the map is 0 the scan is as it was. Raises
    what `check` raises.
    """
    import numpy as np

    from damcli.data import overlays
    from damcli.data.store import Dataset
    from damcli.report.page import GalleryItem

    truth = evaluation.truth
    check(evaluation.kind, truth.path)
    dataset = Dataset.open(truth.path)
    picks = pick(truth.values, evaluation.scores, truth.findings, number)
    place = {name: row for row, name in enumerate(dataset.manifest["id"].to_list())}
    heats, notes = _heats(evaluation, dataset, picks, place, device)
    items = []
    for (finding, kind, row), heat in zip(picks, heats, strict=True):
        pixels = dataset.read(np.array([place[truth.ids[row]]], np.int64))[0]
        column = truth.findings.index(finding)
        items.append(
            GalleryItem(
                finding,
                kind,
                int(truth.values[row, column]),
                float(evaluation.scores[row, column]),
                overlays.picture(pixels, longest=SIDE),
                None if heat is None else overlays.picture(pixels, heat, SIDE),
            )
        )
    return items, notes


def _heats(
    evaluation: Evaluation, dataset: Dataset, picks: Sequence[Pick], place: dict[str, int], device: str
) -> tuple[list[npt.NDArray[np.float32] | None], tuple[str, ...]]:
    """Return a heat map for each pick, None where there is none, and what is to be said of them."""
    none: list[npt.NDArray[np.float32] | None] = [None] * len(picks)
    if evaluation.kind != "run":
        return none, (f"the gallery has no heat maps: {NO_NETWORK[evaluation.kind]}",)
    import torch

    from damcli.training import checkpoint, launch, metadata

    network, info = checkpoint.load_network(evaluation.subject, "best")
    network = network.to(torch.device(launch.accelerator(device)))
    rows = [place[evaluation.truth.ids[pick.row]] for pick in picks]
    logits = [info.findings.index(pick.finding) for pick in picks]
    try:
        made = _of_run(network, dataset, rows, logits)
        heats = list(console.track(made, len(picks), "drawing heat maps", unit="scans"))
    except UsageError as refusal:
        return none, (f"the gallery has no heat maps: {refusal.what}",)
    notes = ["heat maps (Grad-CAM) show where the network saw the finding, each on a scale of its own"]
    if metadata.load(evaluation.subject, info.recipe):
        notes.append("heat maps are of the network of images alone; the scores are mixed with those of the metadata")
    if evaluation.views > 1:
        notes.append(f"heat maps are of the unmoved scan; the scores are the mean over {evaluation.views} views")
    return [*heats], tuple(notes)


def _of_run(
    network: Classifier, dataset: Dataset, rows: Sequence[int], logits: Sequence[int]
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the heat maps of scans of a dataset, one by one."""
    import numpy as np
    import torch

    from damcli.deepauc.heatmaps import heat

    for row, logit in zip(rows, logits, strict=True):
        images = network.as_input(torch.from_numpy(dataset.read(np.array([row], np.int64))))
        yield heat(network, images.to(network.mean.device), logit)[0].numpy()
