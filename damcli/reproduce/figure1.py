"""The paper's Figure 1: easy examples and noisy labels against the AUC square and the AUC margin loss, on a toy.

Two classes in the plane, a network of two layers with ELU. It is trained by cross-entropy on a clean set, which gives
the first boundary, the same for both losses; then the set is extended, and the network trained on by either loss. The
paper does not give its data or settings: these are ours, and so what comes out is ours too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from damcli.deepauc import PESG, AUCMarginLoss, AUCSquareLoss, CrossEntropyLoss
from damcli.metrics import Estimate, components, estimate

Points = npt.NDArray[np.float64]
LOSSES = ("aucs", "aucm")
SETS = ("clean", "easy", "noisy")
TITLES = {"clean": "pre-trained", "easy": "+ easy examples", "noisy": "+ noisy labels"}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the figure, the seed aside. Coordinates are in the units of the classes' spread."""

    scans: int = 60  # of each class
    distance: float = 2.4  # between the class centres, along the first axis
    easy: int = 30  # further examples of each class …
    easy_at: tuple[float, float] = (2.0, 5.0)  # … around here and, for negatives, opposite
    noisy: int = 12  # positives labelled negative …
    noisy_at: tuple[float, float] = (2.2, 3.0)  # … around here, deep on their side
    hidden: int = 16
    pretraining_steps: int = 400
    steps: int = 800
    lr: float = 0.5
    margin: float = 0.5  # reachable with sigmoid scores; at 1 both losses are one
    tested: int = 2000  # of each class, clean, for the AUROC
    grid: int = 80  # points a side, over ± extent
    extent: float = 6.0


@dataclass(frozen=True)
class Panel:
    """One panel: `points` (N, 2) with `labels` and which of them were `added`, the `side` of each grid point.

    `moved` is the share of the grid that lies on the other side of the boundary than before the set was extended.
    """

    loss: str
    data: str
    points: Points = field(repr=False)
    labels: npt.NDArray[np.bool_] = field(repr=False)
    added: npt.NDArray[np.bool_] = field(repr=False)
    surface: Points = field(repr=False)
    auroc: Estimate
    moved: float

    def document(self) -> dict[str, Any]:
        """Return what `figure1.json` says of the panel."""
        return {"loss": self.loss, "data": self.data, "auroc": self.auroc._asdict(), "moved": self.moved}


def panels(settings: Settings, seed: int) -> Iterator[Panel]:
    """Yield the six panels, the square loss's row first. The same `seed` gives the same figure on one machine."""
    network = _pretrained(settings, seed)
    truth, held_out = _held_out(settings, seed)
    start = _surface(network, settings, seed)
    for loss in LOSSES:
        for data in SETS:
            trained = copy.deepcopy(network)
            points, labels, added = draw(settings, seed, data)
            if data != "clean":
                module = AUCSquareLoss(1) if loss == "aucs" else AUCMarginLoss(1, settings.margin)
                _train(trained, module, points, labels, settings)
            surface = _surface(trained, settings, seed)
            scores = _scores(trained, held_out)
            auroc = estimate([components(truth, scores)])
            moved = float(np.mean((surface > 0) != (start > 0)))
            yield Panel(loss, data, points, labels, added, surface, auroc, moved)


def draw(settings: Settings, seed: int, data: str) -> tuple[Points, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the points (N, 2), their labels and which of them are not of the clean set.

    >>> [len(draw(Settings(), 0, data)[0]) for data in SETS]
    [120, 180, 132]
    """
    rng, n = np.random.default_rng([seed, 0]), settings.scans
    centre = np.array([settings.distance / 2, 0.0])
    points = [rng.normal(size=(n, 2)) + centre, rng.normal(size=(n, 2)) - centre]
    labels = [np.ones(n, bool), np.zeros(n, bool)]
    rng = np.random.default_rng([seed, SETS.index(data)])
    if data == "easy":
        for sign in (1, -1):
            points.append(sign * np.array(settings.easy_at) + 0.4 * rng.normal(size=(settings.easy, 2)))
            labels.append(np.full(settings.easy, sign > 0))
    elif data == "noisy":
        points.append(np.array(settings.noisy_at) + 0.5 * rng.normal(size=(settings.noisy, 2)))
        labels.append(np.zeros(settings.noisy, bool))
    together = np.concatenate(points)
    return together, np.concatenate(labels), np.arange(len(together)) >= 2 * n


def document(settings: Settings, seed: int, drawn: list[Panel]) -> dict[str, Any]:
    """Return the content of `figure1.json`."""
    return {"seed": seed, "settings": asdict(settings), "panels": [panel.document() for panel in drawn]}


def _pretrained(settings: Settings, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(2, settings.hidden), nn.ELU(), nn.Linear(settings.hidden, 1))
    points, labels, _ = draw(settings, seed, "clean")
    x, y = _tensors(points, labels)
    loss, optimizer = CrossEntropyLoss(), torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(settings.pretraining_steps):
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()
    return network


def _train(
    network: nn.Sequential, loss: AUCMarginLoss, points: Points, labels: npt.NDArray, settings: Settings
) -> None:
    x, y = _tensors(points, labels)
    optimizer = PESG(network.parameters(), loss, settings.lr, gamma=0.0)
    for _ in range(settings.steps):
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()


def _surface(network: nn.Sequential, settings: Settings, seed: int) -> Points:
    """Return the logits over the grid (rows upwards) less the threshold: midway between the clean classes' means."""
    points, labels, _ = draw(settings, seed, "clean")
    logits = _logits(network, points)
    threshold = (logits[labels].mean() + logits[~labels].mean()) / 2
    ticks = np.linspace(-settings.extent, settings.extent, settings.grid)
    x, y = np.meshgrid(ticks, ticks)
    return (_logits(network, np.column_stack([x.ravel(), y.ravel()])) - threshold).reshape(x.shape)


def _held_out(settings: Settings, seed: int) -> tuple[npt.NDArray, Points]:
    rng = np.random.default_rng([seed, 100])
    labels = np.repeat([1.0, 0.0], settings.tested)
    centre = np.array([settings.distance / 2, 0.0])
    return labels, rng.normal(size=(2 * settings.tested, 2)) + np.where(labels[:, None] == 1, centre, -centre)


def _logits(network: nn.Sequential, points: Points) -> Points:
    with torch.no_grad():
        return np.asarray(network(torch.from_numpy(points).float())[:, 0].double().numpy())


def _scores(network: nn.Sequential, points: Points) -> Points:
    return np.asarray(1 / (1 + np.exp(-_logits(network, points))))


def _tensors(points: Points, labels: npt.NDArray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(points).float(), torch.from_numpy(labels[:, None]).float()
