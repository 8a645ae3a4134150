"""Augmentation: each image by its own seed, inside the bounds, on exact pixels."""

import colorsys
import math

import pytest
import torch

from damcli.data.augment import COLOUR, GEOMETRY, _uniform, affine, augment, check_channels, maps, seen
from damcli.errors import UsageError
from damcli.recipes import Augmentation

NONE = Augmentation(rotate=0, translate=0, scale=0)
ALL = Augmentation(rotate=20, translate=0.1, scale=0.2, flip=True)
FULL = {
    1: ALL.model_copy(update={"shear": 10, "flip_vertical": True, "holes": 3, "brightness": 0.2, "contrast": 0.3}),
    3: Augmentation(shear=10, flip=True, holes=3, brightness=0.1, contrast=0.2, saturation=0.4, hue=0.3),
}


def images(n: int = 6, channels: int = 1, height: int = 24, width: int = 24) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def seeds(n: int) -> torch.Tensor:
    return torch.arange(n) * 1_000_003 - 7


def test_nothing_asked_nothing_done():
    batch = images()
    assert augment(batch, NONE, seeds(6)) is batch


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(channels):
    batch = images(8, channels)
    whole = augment(batch, FULL[channels], seeds(8))
    order = torch.tensor([5, 0, 7])
    assert torch.equal(augment(batch[order], FULL[channels], seeds(8)[order]), whole[order])
    assert torch.equal(augment(batch, FULL[channels], seeds(8)), whole)
    assert (augment(batch, FULL[channels], seeds(8) + 1) != whole).flatten(1).any(1).all()
    assert whole.min() == 0
    assert whole.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_kept(channels):
    batch = images(4, channels).contiguous(memory_format=torch.channels_last)
    changed = augment(batch, FULL[channels], seeds(4))
    assert changed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(changed, augment(batch.contiguous(), FULL[channels], seeds(4)))


def test_the_draws_of_older_recipes_stay():
    """Numbers of the release that had rotation, shift, scaling and flips alone."""
    expected = torch.tensor(
        [
            [[1.202043295, 0.132034212, 0.182298690], [-0.132034212, 1.202043295, -0.005460191]],
            [[-0.871710241, -0.261089951, -0.053437211], [-0.261089951, 0.871710241, -0.128348261]],
        ]
    )
    given = torch.tensor([42, -7])
    torch.testing.assert_close(maps(ALL, given), expected, rtol=0, atol=1e-6)
    # What else is asked for does not move them.
    more = FULL[1].model_copy(update={"shear": 0, "flip_vertical": False})
    assert torch.equal(maps(more, given), maps(ALL, given))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 50)])
def test_maps_are_rotations_scalings_and_shifts(height, width):
    """In pixels every map is a rotation times one scale, whatever the image's shape, inside the bounds asked."""
    n = 4000
    theta = maps(ALL.model_copy(update={"flip": False}), seeds(n), height, width).double()
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


@pytest.mark.parametrize(("flip", "axis"), [("flip", 3), ("flip_vertical", 2)])
def test_flips_mirror_about_half(flip, axis):
    batch = images(200, 1, 9, 16)
    flipped = affine(batch, NONE.model_copy(update={flip: True}), seeds(200))
    same = (flipped - batch).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (flipped - batch.flip(axis)).abs().amax((1, 2, 3)) < 1e-4
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 50)])
def test_shear_is_that_of_pixels_within_its_angle(height, width):
    theta = maps(NONE.model_copy(update={"shear": 30}), seeds(2000), height, width).double()
    pixels = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    linear = theta[:, :, :2] * pixels[:, None] / pixels[None, :]
    angle = torch.atan(linear[:, 0, 1]) * 180 / math.pi
    assert 29.9 < angle.abs().max() <= 30 + 1e-5
    assert angle.std() == pytest.approx(30 / math.sqrt(3), rel=0.05)
    linear[:, 0, 1] = 0
    assert torch.equal(linear, torch.eye(2).double().expand_as(linear))


def test_brightness_and_contrast_are_exact_and_clamped():
    batch = images(50)
    changed = augment(batch, NONE.model_copy(update={"brightness": 0.3, "contrast": 0.5}), seeds(50))
    bright, contrast = (2 * _uniform(seeds(50), 2, skip=GEOMETRY) - 1).T[..., None, None, None]
    expected = (batch - 0.5) * (1 + 0.5 * contrast) + 0.5 + 0.3 * bright
    assert (expected < 0).any()
    assert (expected > 1).any()
    torch.testing.assert_close(changed, expected.clamp(0, 1))


def test_saturation_and_hue_are_those_of_yiq():
    """Against the standard library's YIQ, pixel by pixel, clamped as it clamps."""
    batch = images(20, 3, 4, 4)
    changed = augment(batch, NONE.model_copy(update={"saturation": 0.6, "hue": 0.5}), seeds(20))
    draws = (2 * _uniform(seeds(20), COLOUR, skip=GEOMETRY) - 1).double()
    for image, new, (saturation, hue) in zip(batch, changed, draws[:, 2:].tolist(), strict=True):
        angle, more = 2 * math.pi * 0.5 * hue, 1 + 0.6 * saturation
        for rgb, got in zip(image.flatten(1).T.tolist(), new.flatten(1).T.tolist(), strict=True):
            y, i, q = colorsys.rgb_to_yiq(*rgb)
            turned = (i * math.cos(angle) + q * math.sin(angle), q * math.cos(angle) - i * math.sin(angle))
            expected = colorsys.yiq_to_rgb(y, more * turned[0], more * turned[1])
            assert got == pytest.approx(expected, abs=2e-6)


def test_grey_has_no_hue_or_saturation():
    for name in ("hue", "saturation"):
        strengths = NONE.model_copy(update={name: 0.1})
        check_channels(strengths, 3)
        with pytest.raises(UsageError, match=f"the scans are grey, and have no {name}") as caught:
            check_channels(strengths, 1)
        assert caught.value.where == f"augment.{name}"
        with pytest.raises(ValueError, match="need 3 channels, got 1"):
            augment(images(), strengths, seeds(6))
        grey = torch.full((6, 3, 4, 4), 0.4)
        torch.testing.assert_close(augment(grey, strengths, seeds(6)), grey)
    check_channels(FULL[1], 1)


@pytest.mark.parametrize(("height", "width", "hole", "side"), [(32, 32, 0.25, 8), (20, 50, 0.5, 10), (8, 8, 0.01, 1)])
def test_a_hole_is_a_black_square_anywhere_inside(height, width, hole, side):
    batch = images(1000, 2, height, width) + 0.1
    punched = augment(batch, NONE.model_copy(update={"holes": 1, "hole": hole}), seeds(1000))
    black = (punched == 0).all(1)
    assert torch.equal(punched, batch * ~black[:, None])
    for axis, length in ((1, height), (2, width)):
        lines = black.any(3 - axis).int()
        assert (lines.sum(1) == side).all()
        first = lines.argmax(1)
        assert all(lines[n, at : at + side].all() for n, at in enumerate(first.tolist()))
        assert first.unique().tolist() == list(range(length - side + 1))
        assert first.double().mean() == pytest.approx((length - side) / 2, rel=0.05)
    assert (black.sum((1, 2)) == side * side).all()


def test_many_holes_are_drawn_apart():
    punched = augment(torch.ones(500, 1, 100, 100), NONE.model_copy(update={"holes": 5, "hole": 0.1}), seeds(500))
    black = (punched == 0).sum((1, 2, 3))
    assert black.max() == 5 * 100, "some five lie apart"
    assert 400 < black.double().mean() < 500, "most do not overlap much"


def test_views_are_the_images_and_then_one_map_for_all():
    batch = images(3, 1)
    through = maps(ALL, seeds(4))
    [plain, *views] = seen(batch, through)
    assert plain is batch
    for number, view in enumerate(views):
        assert torch.equal(view, affine(batch, ALL, seeds(4)[number].expand(3)))
    assert [one is batch for one in seen(batch, None)] == [True]


def test_a_shift_is_exact_and_black_outside():
    """A seed's shift, read from its map, moves every pixel by just that: against interpolation by hand."""
    batch = images(1, 1, 8, 10)
    strengths = Augmentation(rotate=0, translate=0.3, scale=0)
    dx, dy = (maps(strengths, seeds(1))[0, :, 2] * torch.tensor([5.0, 4.0])).tolist()
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
    assert torch.equal(_uniform(torch.tensor(given), 1, skip=2), got[:, 2:])
    many = _uniform(torch.arange(20000), 5)
    assert torch.corrcoef(many.T).fill_diagonal_(0).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([many[:-1, 0], many[1:, 0]]))[0, 1].abs() < 0.03


def test_empty_batch_and_bad_arguments():
    for channels, strengths in FULL.items():
        assert augment(images(0, channels), strengths, seeds(0)).shape == (0, channels, 24, 24)
    for bad, words in (
        ((images().byte(), ALL, seeds(6)), "images must be floating"),
        ((images()[0], ALL, seeds(1)), r"images must be floating \(N, C, H, W\)"),
        ((images(), ALL, seeds(5)), r"seeds must be int64 \(6,\), got torch.int64 \(5,\)"),
        ((images(), ALL, seeds(6).int()), "seeds must be int64"),
    ):
        with pytest.raises(ValueError, match=words):
            augment(*bad)
