"""Random augmentation of a whole batch at once, on the device where the batch is, and the fixed views of a test.

Every number is drawn by a hash of the image's own seed and the number's place below, so that a new kind of change
leaves the draws of the others as they were: angle, shift in x and y, size, left-right flip, shear, upside-down flip,
brightness, contrast, saturation, hue, and then x and y of each hole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from damcli.errors import UsageError
from damcli.recipes import Augmentation

GOLDEN = -7046029254386353131  # 2⁶⁴/φ as a signed 64-bit number: the increment of SplitMix64
MIX1, MIX2 = -4658895280553007687, -7723592293110705685
GEOMETRY, COLOUR = 7, 4  # how many numbers the map and the colours of an image take

# From RGB to RGB: the luminance in all channels, what a colour has beside it, and that turned by 90° from red over
# yellow to green. I and Q are those of the FCC's standard for NTSC.
LUMINANCE = torch.tensor([[0.30, 0.59, 0.11]], dtype=torch.float64).expand(3, 3)
CHROMA = torch.eye(3, dtype=torch.float64) - LUMINANCE
_YIQ = torch.stack([LUMINANCE[0], 0.74 * CHROMA[0] - 0.27 * CHROMA[2], 0.48 * CHROMA[0] + 0.41 * CHROMA[2]])
_QUARTER = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
TURN = torch.linalg.inv(_YIQ) @ _QUARTER @ _YIQ


def augment(images: Tensor, augmentation: Augmentation, seeds: Tensor) -> Tensor:
    """Change every image at random: first its geometry, then its colours, last the holes.

    `images` is floating (N, C, H, W) in [0, 1], `seeds` int64 (N,), on the same device; the memory format is kept. An
    image's change depends on its own seed alone, never on the rest of the batch: seed by scan and step. Each value is
    uniform in ± the strength in `augmentation`; with all of them zero the images come back as they are.
    Raises `ValueError` for shapes and types that do not fit.
    """
    return _punch(_tint(affine(images, augmentation, seeds), augmentation, seeds), augmentation, seeds)


def check_channels(augmentation: Augmentation, channels: int) -> None:
    """Raise `UsageError` for changes of colour that grey scans do not have.

    >>> check_channels(Augmentation(hue=0.1), channels=1)
    Traceback (most recent call last):
    ...
    damcli.errors.UsageError: the scans are grey, and have no hue to change
      where: augment.hue
      fix: --set augment.hue=0, or take brightness and contrast
    """
    for name in ("saturation", "hue"):
        if channels == 1 and getattr(augmentation, name):
            raise UsageError(
                f"the scans are grey, and have no {name} to change",
                where=f"augment.{name}",
                fix=f"--set augment.{name}=0, or take brightness and contrast",
            )


def affine(images: Tensor, augmentation: Augmentation, seeds: Tensor) -> Tensor:
    """Rotate, shift, scale, shear and flip every image at random, in one sampling: bilinear, black outside.

    Arguments and errors are those of `augment`.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if seeds.shape != images.shape[:1] or seeds.dtype != torch.int64:
        raise ValueError(f"seeds must be int64 ({len(images)},), got {seeds.dtype} {tuple(seeds.shape)}")
    if not moves(augmentation):
        return images
    return move(images, maps(augmentation, seeds, *images.shape[2:]))


def moves(augmentation: Augmentation) -> bool:
    """Whether anything moves pixels to other places.

    >>> moves(Augmentation(rotate=0, translate=0, scale=0, brightness=0.2))
    False
    """
    a = augmentation
    return bool(a.rotate or a.translate or a.scale or a.shear or a.flip or a.flip_vertical)


def maps(augmentation: Augmentation, seeds: Tensor, height: int = 1, width: int = 1) -> Tensor:
    """Return a random map per seed (int64 (N,)), float32 (N, 2, 3), for `move`.

    Of the image's height and width their ratio alone matters. A map takes (x, y, 1) of a place in the new image to
    (x, y) in the old one, both in [-1, 1]: shear, rotation and scaling, flips, shift, in this order.
    """
    draws = 2 * _uniform(seeds, GEOMETRY) - 1
    angle = draws[:, 0] * math.radians(augmentation.rotate)
    shift = draws[:, 1:3] * (2 * augmentation.translate)
    size = 1 + draws[:, 3] * augmentation.scale
    shear = torch.tan(draws[:, 5] * math.radians(augmentation.shear))
    across, down = (
        torch.where(draws[:, place] < 0, -1.0, 1.0) if flip else torch.ones_like(size)
        for place, flip in ((4, augmentation.flip), (6, augmentation.flip_vertical))
    )
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    # [-1, 1] spans the height and the width alike: without their ratio a rotation would shear an oblong image.
    rows = [
        torch.stack([cos * across, (cos * shear - sin) * (height / width) * across, shift[:, 0]], dim=1),
        torch.stack([sin * (width / height) * down, (sin * shear + cos) * down, shift[:, 1]], dim=1),
    ]
    return torch.stack(rows, dim=1)


def move(images: Tensor, through: Tensor) -> Tensor:
    """Return images (N, C, H, W) seen through maps (N, 2, 3): bilinear, black outside, in their memory format."""
    if len(images) == 0:
        return images
    grid = F.affine_grid(through.to(images.dtype), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if images.is_contiguous(memory_format=torch.channels_last):
        return moved.contiguous(memory_format=torch.channels_last)
    return moved


def seen(images: Tensor, views: Tensor | None) -> Iterator[Tensor]:
    """Yield the images (N, C, H, W) as they are and then through each map of `views` (V, 2, 3), one after the other."""
    yield images
    for view in () if views is None else views.to(images.device):
        yield move(images, view.expand(len(images), 2, 3))


def _tint(images: Tensor, augmentation: Augmentation, seeds: Tensor) -> Tensor:
    """Change contrast (about mid-grey) and brightness, of colour also saturation and hue; clamped to [0, 1].

    Saturation scales and hue turns what a colour has beside its luminance, in the plane of I and Q (YIQ). That is
    linear, so that all four together are one matrix and one offset for an image.
    """
    strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue)
    if not any(strengths):
        return images
    channels, coloured = images.shape[1], bool(augmentation.saturation or augmentation.hue)
    if coloured and channels != 3:
        raise ValueError(f"saturation and hue need 3 channels, got {channels}")
    draws = (2 * _uniform(seeds, COLOUR, skip=GEOMETRY) - 1).double().T[..., None, None]
    bright, contrast, saturation, hue = (draw * strength for draw, strength in zip(draws, strengths, strict=True))
    changed = (bright - contrast / 2)[..., None].to(images.dtype)
    if not coloured:
        return torch.addcmul(changed, images, (1 + contrast)[..., None].to(images.dtype)).clamp_(0, 1)
    luminance, chroma, turn = (matrix.to(images.device) for matrix in (LUMINANCE, CHROMA, TURN))
    angle = 2 * math.pi * hue
    mix = luminance + (1 + saturation) * (torch.cos(angle) * chroma + torch.sin(angle) * turn)
    mix = ((1 + contrast) * mix).to(images.dtype)[..., None, None]
    # Not a matrix product over the pixels: that would be rounded otherwise in other batches and on other devices.
    for k in range(3):
        changed = torch.addcmul(changed, images[:, k : k + 1], mix[:, :, k])
    changed.clamp_(0, 1)
    if images.is_contiguous(memory_format=torch.channels_last):
        return changed.contiguous(memory_format=torch.channels_last)
    return changed


def _punch(images: Tensor, augmentation: Augmentation, seeds: Tensor) -> Tensor:
    """Black out squares that lie wholly inside the image and may overlap (coarse dropout)."""
    count, (height, width) = augmentation.holes, images.shape[2:]
    if not count:
        return images
    side = max(1, round(augmentation.hole * min(height, width)))
    places = _uniform(seeds, 2 * count, skip=GEOMETRY + COLOUR).view(-1, count, 2)
    inside = []
    for axis, length in ((1, height), (0, width)):
        first = (places[:, :, axis] * (length - side + 1)).floor()[..., None]
        pixels = torch.arange(length, device=images.device)
        inside.append(((pixels >= first) & (pixels < first + side)).to(images.dtype))
    # How many holes lie over each pixel: small whole numbers, exact in any order and precision.
    covered = inside[0].transpose(1, 2) @ inside[1]
    return images * (covered == 0)[:, None]


def _uniform(seeds: Tensor, count: int, skip: int = 0) -> Tensor:
    """Return `count` numbers in [0, 1) per seed after the first `skip`, float32 (N, count), by SplitMix64's hash.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). Integer arithmetic
    wraps around, and gives the same bits on every device.
    """
    counters = torch.arange(skip + 1, skip + count + 1, device=seeds.device) * GOLDEN
    bits = _mix(_mix(seeds + GOLDEN)[:, None] + counters)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * MIX1
    bits = (bits ^ _shift(bits, 27)) * MIX2
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)
