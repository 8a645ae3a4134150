"""Random affine augmentation of a whole batch at once, on the device where the batch is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from damcli.recipes import Augmentation

GOLDEN = -7046029254386353131  # 2⁶⁴/φ as a signed 64-bit number: the increment of SplitMix64
MIX1, MIX2 = -4658895280553007687, -7723592293110705685


def affine(images: Tensor, augmentation: Augmentation, seeds: Tensor) -> Tensor:
    """Rotate, shift, scale (and flip) every image at random: bilinear, black outside.

    `images` is floating (N, C, H, W), `seeds` int64 (N,), on the same device. An image's change depends on its
    own seed alone, never on the rest of the batch: seed by scan and epoch. Each value is uniform in ± the
    strength in `augmentation`; with all strengths zero the images come back as they are.
    Raises `ValueError` for shapes and types that do not fit.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if seeds.shape != images.shape[:1] or seeds.dtype != torch.int64:
        raise ValueError(f"seeds must be int64 ({len(images)},), got {seeds.dtype} {tuple(seeds.shape)}")
    if not (augmentation.rotate or augmentation.translate or augmentation.scale or augmentation.flip):
        return images
    if len(images) == 0:
        return images
    grid = F.affine_grid(_matrices(images, augmentation, seeds), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if images.is_contiguous(memory_format=torch.channels_last):
        return moved.contiguous(memory_format=torch.channels_last)
    return moved


def _matrices(images: Tensor, augmentation: Augmentation, seeds: Tensor) -> Tensor:
    """Return the maps (N, 2, 3) from places in the new image to places in the old, both in [-1, 1]."""
    draws = 2 * _uniform(seeds, 5) - 1
    angle = draws[:, 0] * math.radians(augmentation.rotate)
    shift = draws[:, 1:3] * (2 * augmentation.translate)
    size = 1 + draws[:, 3] * augmentation.scale
    mirror = torch.where(draws[:, 4] < 0, -1.0, 1.0) if augmentation.flip else torch.ones_like(size)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    height, width = images.shape[2:]
    # [-1, 1] spans the height and the width alike: without their ratio a rotation would shear an oblong image.
    rows = [
        torch.stack([cos * mirror, -sin * (height / width) * mirror, shift[:, 0]], dim=1),
        torch.stack([sin * (width / height), cos, shift[:, 1]], dim=1),
    ]
    return torch.stack(rows, dim=1).to(images.dtype)


def _uniform(seeds: Tensor, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) per seed, float32 (N, count), by SplitMix64's counter-based hash.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). Integer arithmetic
    wraps around, and gives the same bits on every device.
    """
    counters = torch.arange(1, count + 1, device=seeds.device) * GOLDEN
    bits = _mix(_mix(seeds + GOLDEN)[:, None] + counters)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * MIX1
    bits = (bits ^ _shift(bits, 27)) * MIX2
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)
