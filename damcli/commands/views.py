"""Test-time augmentation on the command line: what `--tta N` of `evaluate` and `export` takes, refuses and says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from damcli.errors import UsageError

Number = Annotated[
    int | None,
    typer.Option(
        "--tta",
        metavar="N",
        min=2,
        help="Test-time augmentation of a run: the mean score over the scan and N - 1 fixed views of it, turned,"
        " shifted, scaled, sheared and flipped as in training, without holes and colours. The paper takes 30.",
    ),
]
REFUSED = {
    "model": ("a model's views are fixed when it is exported", "put them into it: damcli export RUN --tta {}"),
    "folds": ("the scores out of fold are made already", "name one of the members: damcli evaluate RUN --tta {}"),
    "scores": (
        "scores are made already, and have no images",
        "name the run they are from: damcli evaluate RUN --tta {}",
    ),
}


def check(number: int | None, kind: str) -> None:
    """Raise `UsageError` where views are asked for of what is no run; `kind` is that of `evaluate`."""
    if number is not None and kind != "run":
        what, fix = REFUSED[kind]
        raise UsageError(what, where="--tta", fix=fix.format(number))


def remark(numbers: Iterable[int | None]) -> tuple[str, ...]:
    """Return what a reader has to know of scores over so many views, one number per network.

    >>> remark([30, 30]), remark([None])
    (('test-time augmentation: a score is the mean over 30 views of a scan',), ())
    """
    counts = sorted({number or 1 for number in numbers})
    if counts == [1]:
        return ()
    return (f"test-time augmentation: a score is the mean over {' or '.join(map(str, counts))} views of a scan",)
