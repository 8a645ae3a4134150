"""Resizing against exact averages, and what a contract allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from damcli.data.images import Contract, resize

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, (40, 60), dtype=np.uint8)
RGB = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def grey(size: int, fit: str = "stretch") -> Contract:
    return Contract(size=size, channels=1, fit=fit)


def colour(size: int, fit: str = "stretch") -> Contract:
    return Contract(size=size, channels=3, fit=fit)


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


def box(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The exact area average."""

    def weights(large: int, small: int) -> np.ndarray:
        edges = np.arange(small + 1) * large / small
        left, right = np.arange(large), np.arange(large) + 1
        overlap = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
        return np.clip(overlap, 0, None) * small / large

    return weights(image.shape[0], height) @ image.astype(float) @ weights(image.shape[1], width).T


@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([np.uint8, np.uint16]))
def test_shrinking_by_a_whole_factor_is_the_exact_average_rounded_once(factor, size, dtype):
    image = np.random.default_rng(factor).integers(0, np.iinfo(dtype).max + 1, (size * factor,) * 2).astype(dtype)
    exact = image.reshape(size, factor, size, factor).mean((1, 3)) * (255 / np.iinfo(dtype).max)
    assert np.abs(resize(image, grey(size)) - exact).max() <= 0.5 + 0.5 / 257 + 1e-9


@settings(max_examples=30)
@given(st.integers(24, 90), st.integers(24, 90), st.integers(8, 24))
def test_shrinking_by_any_factor_is_the_exact_average(height, width, size):
    image = np.random.default_rng(height).integers(0, 256, (height, width), dtype=np.uint8)
    assert np.abs(resize(image, grey(size)) - box(image, size, size)).max() <= 0.51


def test_sixteen_bits_are_rounded_to_eight_only_after_resizing():
    image = np.tile(np.array([[0, 128 + 257]], np.uint16), (4, 4))  # 0 and 1.498 of 255 average to 0.749
    assert resize(image, grey(1)).tolist() == [[1]]


def test_every_eight_bit_value_survives_sixteen_bits():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(resize(ramp.astype(np.uint16) * 257, grey(16)), ramp)


def test_pad_keeps_the_aspect_and_fills_with_black():
    wide = resize(np.full((30, 60), 255, np.uint8), grey(20, "pad"))
    assert (wide == 255).sum() == 20 * 10
    assert wide[5:15].all()
    assert not np.delete(wide, np.s_[5:15], axis=0).any()
    np.testing.assert_array_equal(wide.T, resize(np.full((60, 30), 255, np.uint8), grey(20, "pad")))


def test_crop_keeps_the_middle_square():
    np.testing.assert_array_equal(resize(GREY, grey(40, "crop")), GREY[:, 10:50])
    np.testing.assert_array_equal(resize(GREY, grey(20, "crop")), resize(GREY[:, 10:50], grey(20)))


def test_enlarging_invents_no_values_beyond_the_given_ones():
    large = resize(np.array([[10, 200]], np.uint8), grey(64))
    assert (large.min(), large.max()) == (10, 200)
    assert (np.diff(large[0].astype(int)) >= 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 20000)])
@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
def test_extreme_shapes(shape, fit):
    assert resize(np.full(shape, 9, np.uint8), grey(32, fit)).shape == (32, 32)


def test_grey_becomes_three_equal_channels_and_colour_becomes_luma():
    three = resize(GREY[:, :40], colour(40))
    assert three.shape == (40, 40, 3)
    np.testing.assert_array_equal(three, np.stack([GREY[:, :40]] * 3, -1))
    assert np.abs(resize(RGB[:, :40], grey(40)) - luma(RGB[:, :40])).max() <= 1


def test_a_contract_refuses_what_it_does_not_know():
    assert Contract.model_validate_json(Contract(size=64, channels=3).model_dump_json()) == Contract(
        size=64, channels=3
    )
    for wrong in ({"size": 0}, {"size": 9000}, {"channels": 2}, {"fit": "squash"}, {"version": 2}, {"colour": True}):
        with pytest.raises(ValidationError):
            Contract(**({"size": 64, "channels": 1} | wrong))
