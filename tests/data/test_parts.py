"""What is said of a split that damcli draws: patients are only kept together where they are known."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from damcli.data import parts
from damcli.data.labels import Policy
from damcli.data.sources import Source, table_of

NOBODY = "no patient is known and leaks cannot be excluded"


def source(patients: list[str | None]) -> Source:
    names = [f"{n}.png" for n in range(len(patients))]
    scans = table_of(
        names, names, {"Edema": [n % 2 for n in range(len(names))]}, patient=pl.Series(patients, dtype=pl.String)
    )
    return Source("x", Path(), scans, ["Edema"], {"Edema": Policy()}, [])


@pytest.mark.parametrize("folds", [None, 5])
@pytest.mark.parametrize(
    ("patients", "whole"),
    [
        ([f"p{n // 4}" for n in range(40)], True),
        ([f"p{n // 4}" if n else None for n in range(40)], True),
        ([None] * 40, False),
    ],
)
def test_whole_patients_are_said_only_where_some_are_known(patients, whole: bool, folds: int | None) -> None:
    made = parts.assign(source(patients), None, folds, seed=0)
    (said,) = [note for note in made.notes if "(seed 0)" in note]
    assert ("whole patients" in said, NOBODY in said) == (whole, not whole)
    known = made.scans.filter(pl.col("patient").is_not_null())
    assert not len(known) or known.group_by("patient").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(made.scans["split"]) == {"train", "valid"}


@pytest.mark.parametrize("folds", [None, 5])
def test_of_a_source_with_an_official_test_it_is_not_said_that_there_is_none(folds: int | None) -> None:
    one = source([f"p{n // 4}" for n in range(40)])
    tested = pl.Series(["test" if n < 8 else None for n in range(40)])
    made = parts.assign(replace(one, scans=one.scans.with_columns(tested.alias("split"))), None, folds, seed=0)
    (said,) = [note for note in made.notes if "official" in note]
    assert said.startswith("32 scans have no official split: ")
    assert "scans became" not in said
