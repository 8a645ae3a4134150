"""Augmentation: each image by its own seed, inside the bounds, on exact pixels."""

import math

import pytest
import torch

from damcli.data.augment import _matrices, _uniform, affine
from damcli.recipes import Augmentation

NONE = Augmentation(rotate=0, translate=0, scale=0)
ALL = Augmentation(rotate=20, translate=0.1, scale=0.2, flip=True)


def images(n: int = 6, channels: int = 1, height: int = 24, width: int = 24) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def seeds(n: int) -> torch.Tensor:
    return torch.arange(n) * 1_000_003 - 7


def test_nothing_asked_nothing_done():
    batch = images()
    assert affine(batch, NONE, seeds(6)) is batch


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(channels):
    batch = images(8, channels)
    whole = affine(batch, ALL, seeds(8))
    order = torch.tensor([5, 0, 7])
    assert torch.equal(affine(batch[order], ALL, seeds(8)[order]), whole[order])
    assert torch.equal(affine(batch, ALL, seeds(8)), whole)
    assert not torch.equal(affine(batch, ALL, seeds(8) + 1), whole)


def test_channels_last_is_kept():
    batch = images(4, 3).contiguous(memory_format=torch.channels_last)
    moved = affine(batch, ALL, seeds(4))
    assert moved.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moved, affine(batch.contiguous(), ALL, seeds(4)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 50)])
def test_maps_are_rotations_scalings_and_shifts(height, width):
    """In pixels every map is a rotation times one scale, whatever the image's shape, inside the bounds asked."""
    n = 4000
    theta = _matrices(images(n, 1, height, width), ALL.model_copy(update={"flip": False}), seeds(n)).double()
    pixels = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    linear = theta[:, :, :2] * pixels[:, None] / pixels[None, :]
    squared = linear.transpose(1, 2) @ linear
    scale = squared[:, 0, 0].rsqrt()
    torch.testing.assert_close(squared, torch.eye(2).double() * scale[:, None, None] ** -2, rtol=1e-5, atol=1e-6)
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    for values, bound, centre in (
        (angle, math.radians(20), 0.0),
        (scale, 0.2, 1.0),
        (theta[:, 0, 2] / 2, 0.1, 0.0),
        (theta[:, 1, 2] / 2, 0.1, 0.0),
    ):
        spread = values - centre
        assert spread.abs().max() <= bound * (1 + 1e-5)
        assert spread.abs().max() > 0.99 * bound
        assert spread.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(spread.mean()) < 0.05 * bound


def test_flip_mirrors_about_half():
    batch = images(200, 1, 9, 16)
    flipped = affine(batch, NONE.model_copy(update={"flip": True}), seeds(200))
    same = (flipped - batch).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (flipped - batch.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_a_shift_is_exact_and_black_outside():
    """A seed's shift, read from its map, moves every pixel by just that: against interpolation by hand."""
    batch = images(1, 1, 8, 10)
    strengths = Augmentation(rotate=0, translate=0.3, scale=0)
    dx, dy = (_matrices(batch, strengths, seeds(1))[0, :, 2] * torch.tensor([5.0, 4.0])).tolist()
    moved = affine(batch, strengths, seeds(1))[0, 0]

    def at(y: int, x: int) -> float:
        return float(batch[0, 0, y, x]) if 0 <= y < 8 and 0 <= x < 10 else 0.0

    for y in range(8):
        for x in range(10):
            top, left = math.floor(y + dy), math.floor(x + dx)
            v, u = y + dy - top, x + dx - left
            expected = (1 - v) * ((1 - u) * at(top, left) + u * at(top, left + 1)) + v * (
                (1 - u) * at(top + 1, left) + u * at(top + 1, left + 1)
            )
            assert float(moved[y, x]) == pytest.approx(expected, abs=1e-5)


def test_numbers_are_those_of_splitmix64():
    """The published algorithm on Python's integers; neighbouring seeds give unrelated numbers."""
    word = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        return z ^ (z >> 31)

    given = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    got = _uniform(torch.tensor(given), 3)
    for row, seed in enumerate(given):
        state = mix((seed + 0x9E3779B97F4A7C15) & word)
        for column in range(3):
            state = (state + 0x9E3779B97F4A7C15) & word
            assert got[row, column].item() == (mix(state) >> 40) / 2**24
    many = _uniform(torch.arange(20000), 5)
    assert torch.corrcoef(many.T).fill_diagonal_(0).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([many[:-1, 0], many[1:, 0]]))[0, 1].abs() < 0.03


def test_empty_batch_and_bad_arguments():
    assert affine(images(0), ALL, seeds(0)).shape == (0, 1, 24, 24)
    for bad, words in (
        ((images().byte(), ALL, seeds(6)), "images must be floating"),
        ((images()[0], ALL, seeds(1)), r"images must be floating \(N, C, H, W\)"),
        ((images(), ALL, seeds(5)), r"seeds must be int64 \(6,\), got torch.int64 \(5,\)"),
        ((images(), ALL, seeds(6).int()), "seeds must be int64"),
    ):
        with pytest.raises(ValueError, match=words):
            affine(*bad)
