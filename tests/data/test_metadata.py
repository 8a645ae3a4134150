"""Metadata as numbers: exact values, what is missing or unseen, and the columns that are refused."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from damcli.data import metadata
from damcli.data.metadata import Categories, Encoding, Numbers
from damcli.errors import DataError, UsageError

NAN = float("nan")


@pytest.fixture
def scans():
    return pl.DataFrame(
        {"age": [20.0, 40.0, 60.0, None], "sex": ["f", "m", None, "f"], "smoker": [True, False, None, True]}
    )


def test_numbers_are_standardised_by_those_known_and_others_are_one_hot(scans):
    encoding = metadata.fit(scans, ["age", "sex", "smoker"])
    age, sex, smoker = encoding.columns
    assert (age.mean, age.std) == (40, pytest.approx(np.sqrt(800 / 3)))
    assert (sex.values, smoker.values) == (("f", "m"), ("false", "true"))
    assert encoding.width == 2 + 4 + 4
    far = np.float32(20 / np.sqrt(800 / 3))
    expected = [
        [-far, 0, 1, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0, 0, 1, 0, 0, 0],
        [far, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        [0, 1, 1, 0, 0, 0, 0, 1, 0, 0],
    ]
    rows = encoding.encode(scans)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_text_from_a_csv_is_encoded_as_the_dataset_was(scans):
    encoding = metadata.fit(scans, ["age", "sex"])
    text = pl.DataFrame({"age": [" 20.0", "4e1", "60", ""], "sex": ["F", " m ", "unknown", "f"]})
    np.testing.assert_array_equal(encoding.encode(text), encoding.encode(scans))


def test_what_is_missing_or_was_never_met_has_places_of_its_own(scans):
    encoding = metadata.fit(scans, ["age", "sex"])
    rows = encoding.encode(pl.DataFrame({"age": [None, NAN, 40.0], "sex": ["x", None, "other"]}))
    np.testing.assert_array_equal(rows, [[0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0]])
    assert encoding.doubts(rows) == [("age", 2, 0), ("sex", 1, 2)]
    np.testing.assert_array_equal(encoding.nothing, rows[1])
    np.testing.assert_array_equal(encoding.encode(pl.DataFrame({"other": [1]})), rows[1:2])
    assert encoding.encode(scans[:0]).shape == (0, 6)


def test_of_several_networks_the_one_that_has_seen_least_counts():
    one, two = (Categories(column="sex", values=values) for values in (("f", "m"), ("f",)))
    both = Encoding(columns=(one, two))
    assert both.doubts(both.encode(pl.DataFrame({"sex": ["m", "f", None, "x"]}))) == [("sex", 1, 2)]


def test_a_far_number_does_not_swamp_the_others():
    encoding = metadata.fit(pl.DataFrame({"age": [30, 50]}), ["age"])
    rows = encoding.encode(pl.DataFrame({"age": ["6500", "-1e308", "1e308"]}))
    np.testing.assert_array_equal(rows, [[10, 0], [-10, 0], [10, 0]])


def test_text_in_a_column_of_numbers_is_refused_with_its_row(scans):
    encoding = metadata.fit(scans, ["age"])
    for wrong in ("065Y", "inf"):
        with pytest.raises(DataError, match="1 cells of a column of numbers are no numbers") as caught:
            encoding.encode(pl.DataFrame({"age": ["40", wrong]}), "table.csv")
        assert caught.value.where == "table.csv, row 2 below the header, column 'age'"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([None, None], "is empty"),
        (["", "n/a"], "is empty"),
        ([3.0, 3.0], "is the same for every scan"),
        (["a", "A "], "is the same for every scan"),
        ([[1], [2]], "neither numbers nor text"),
        ([f"p{n}" for n in range(51)], "51 different values"),
    ],
)
def test_columns_that_say_nothing_or_too_much_are_refused(cells, message):
    with pytest.raises(DataError, match=message):
        metadata.fit(pl.DataFrame({"column": cells}), ["column"])


def test_of_one_number_and_blanks_the_blanks_are_learnt_from():
    encoding = metadata.fit(pl.DataFrame({"dose": [5.0, None]}), ["dose"])
    np.testing.assert_array_equal(encoding.encode(pl.DataFrame({"dose": [5.0, None]})), [[0, 0], [0, 1]])


def test_an_encoding_survives_json(scans):
    encoding = metadata.fit(scans, ["age", "sex"])
    again = Encoding.model_validate_json(encoding.model_dump_json())
    assert again == encoding
    np.testing.assert_array_equal(again.encode(scans), encoding.encode(scans))


@pytest.mark.parametrize(
    "column",
    [
        {"kind": "numbers", "column": "age", "mean": 0, "std": 0},
        {"kind": "numbers", "column": "age", "mean": NAN, "std": 1},
        {"kind": "categories", "column": "sex", "values": []},
        {"kind": "words", "column": "sex", "values": ["a"]},
        {"kind": "numbers", "column": "age", "mean": 0, "std": 1, "more": 1},
    ],
)
def test_a_damaged_encoding_is_refused(column):
    with pytest.raises(ValidationError):
        Encoding.model_validate({"columns": [column]})


@pytest.fixture
def manifest():
    """400 scans of 100 patients; age says a little of the label, `stage` nearly all, `shots` counts scans."""
    rng = np.random.default_rng(0)
    sizes = np.repeat([2, 6], 50)
    patient = np.repeat(np.arange(100), sizes)
    sick = rng.random(len(patient)) < 0.3
    return pl.DataFrame(
        {
            "id": [f"{n}" for n in range(len(patient))],
            "path": "x",
            "patient": [f"p{n}" for n in patient],
            "study": None,
            "view": None,
            "split": "valid",
            "label:sick": sick.astype(float),
            "target:sick": sick.astype(float),
            "age": 50 + 5 * sick + rng.normal(0, 10, len(patient)),
            "stage": np.where(rng.random(len(patient)) < 0.05, ~sick, sick).astype(float),
            "shots": np.repeat(sizes, sizes),
            "width": rng.integers(500, 600, len(patient)),
            "seriesUID": "x",
            "body_height": rng.normal(170, 10, len(patient)),
        },
        schema_overrides={"study": pl.String, "view": pl.String},
    )


@pytest.mark.parametrize("column", ["id", "path", "patient", "split", "label:sick", "target:sick", "sexx"])
def test_what_is_no_metadata_is_refused(manifest, column):
    with pytest.raises(UsageError, match="there is no metadata column"):
        metadata.choose([column], manifest)


def test_a_column_is_found_by_its_name_or_the_nearest_is_named(manifest):
    assert metadata.choose(["AGE", "body_height"], manifest) == ["age", "body_height"]
    with pytest.raises(UsageError) as caught:
        metadata.choose(["agee"], manifest)
    assert caught.value.fix == "did you mean age?"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("stage", "the column stage alone tells sick with AUROC 0.9"),
        ("shots", "the number of the patient's scans"),
        ("width", "tells of the image's shape or the file's size by its name"),
        ("seriesUID", "a name or number given to it"),
    ],
)
def test_columns_that_tell_of_the_label_and_not_of_the_patient_are_refused(manifest, column, message):
    found = metadata.leaks(manifest, ["age", column], ["sick"])
    assert list(found) == [column]
    assert message in found[column]
    assert "--allow-leaks" in metadata.refusal(found[column]).fix


def test_what_was_let_pass_stays_with_the_encoding(manifest):
    encoding = metadata.fit(manifest, ["age", "stage"], metadata.leaks(manifest, ["age", "stage"], ["sick"]))
    again = Encoding.model_validate_json(encoding.model_dump_json())
    [text] = again.leaks
    assert "the column stage alone tells sick" in text
    assert "the figures flatter" in text
    assert metadata.fit(manifest, ["age"]).leaks == []


def test_the_patients_own_columns_pass(manifest):
    assert metadata.leaks(manifest, ["age", "body_height"], ["sick"]) == {}


def test_numbers_and_categories_are_told_apart_by_their_kind():
    loaded = Encoding.model_validate_json('{"columns": [{"kind": "numbers", "column": "a", "mean": 1, "std": 2}]}')
    assert loaded.columns == (Numbers(column="a", mean=1, std=2),)
