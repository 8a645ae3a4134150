"""The grey scale formulas against the text of PS3.3 C.11.2.1 and against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from damcli.dicom.greyscale import PERCENTILES, levels, lookup, percentile_range, spread, window


def linear(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.2.1, as written there, for an output of 0 … 1."""
    if x <= c - 0.5 - (w - 1) / 2:
        return 0
    if x > c - 0.5 + (w - 1) / 2:
        return 1
    return (x - (c - 0.5)) / (w - 1) + 0.5


def linear_exact(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.3.2."""
    if x <= c - w / 2:
        return 0
    if x > c + w / 2:
        return 1
    return (x - c) / w + 0.5


def sigmoid(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.3.1."""
    exponent = -4 * (x - c) / w
    return 1 / (1 + math.exp(exponent)) if exponent < 700 else 0


@pytest.mark.parametrize(
    ("function", "formula"), [("LINEAR", linear), ("LINEAR_EXACT", linear_exact), ("SIGMOID", sigmoid)]
)
@pytest.mark.parametrize(
    ("center", "width"), [(128, 256), (40, 400), (-600.5, 1500.5), (0, 1), (100, 2), (511.5, 1023)]
)
def test_windows_are_the_formulas_of_the_standard(function, formula, center, width):
    x = np.arange(-1100, 1100)
    expected = [formula(v, center, width) for v in x.tolist()]
    np.testing.assert_allclose(window(x, center, width, function), expected, rtol=0, atol=1e-12)


def test_a_window_of_width_one_is_a_threshold():
    assert window(np.array([9, 10, 11]), 10, 1).tolist() == [0, 1, 1]


def test_the_sigmoid_does_not_overflow():
    with np.errstate(all="raise"):
        assert window(np.array([-1e9, 1e9]), 0, 1e-3, "SIGMOID").tolist() == [pytest.approx(0, abs=1e-300), 1]


def test_an_unknown_function_is_refused():
    with pytest.raises(ValueError, match="LINEAR_EXACT or SIGMOID, got 'LOG'"):
        window(np.zeros(1), 0, 1, "LOG")


def test_lookup_clamps_at_both_ends():
    table = np.array([10, 20, 30])
    assert lookup(np.array([-99, 4, 5, 6, 7, 99]), 5, table).tolist() == [10, 10, 10, 20, 30, 30]


@given(arrays(np.int16, array_shapes(min_dims=1, max_dims=2, max_side=60), elements=st.integers(-50, 50)))
def test_percentiles_are_the_brute_force_ones(image):
    values, which = levels(image)
    low, high = percentile_range(values, np.bincount(which.ravel(), minlength=len(values)))
    ascending = np.sort(image, axis=None)
    # The smallest value that at least this fraction of the pixels does not exceed.
    expected = [next(v for v in ascending if (image <= v).mean() >= q) for q in PERCENTILES]
    if expected[0] == expected[1]:
        expected = [ascending[0], ascending[-1]]
    assert [low, high] == expected


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", ">u2", ">i2", "int32", "float32"])
def test_levels_give_the_image_back(dtype):
    image = np.array([[0, 1, 100], [7, 90, 3]]).astype(dtype)
    if image.dtype.kind != "u":
        image[0, 0] = -5
    values, which = levels(image)
    np.testing.assert_array_equal(values[which], image)


def test_spread_ignores_single_outliers_and_is_linear_between():
    ramp = np.repeat(np.arange(1000, 3000, dtype=np.uint16), 10).reshape(100, 200)
    ramp[0, 0], ramp[0, 1] = 0, 65535
    shown = spread(ramp)
    assert (shown[0, 0], shown[0, 1]) == (0, 65535)
    low, high = 1002, 2998  # the first that 20 and 19,980 of the 20,000 pixels do not exceed
    inside = (ramp > low) & (ramp < high)
    expected = (ramp[inside].astype(float) - low) / (high - low) * 65535
    assert np.abs(shown[inside] - expected).max() <= 0.5 + 1e-6


def test_spread_shows_what_is_not_finite_as_black():
    image = np.array([[np.nan, 0.0], [1.0, np.inf]], np.float32)
    assert spread(image).tolist() == [[0, 0], [65535, 0]]


def test_a_constant_image_is_black():
    assert not spread(np.full((4, 4), 37, np.uint16)).any()
