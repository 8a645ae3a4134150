"""Draws schematic chest radiographs: smooth regions as numpy fields, thin lines with Pillow.

A picture is built as X-ray density (0 nothing in the way, 1 white) on a grid of half the picture's resolution, then
exposed: enlarged, rotated, given contrast and noise. Lengths are pixels of the picture, x = 0 is the middle of the
body, and left in the picture is the patient's right, as usual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

HEIGHT, WIDTH = 320, 390
STEP = 2  # picture pixels per cell of the density grid
Field = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Anatomy:
    """What stays with a patient: lengths in pixels of the 320 × 390 picture, densities in [0, 1]."""

    thorax: float  # half the inner width of the chest
    top: float  # apex of the lungs
    dome: float  # top of the right half of the diaphragm
    heart: float  # cardiothoracic ratio without disease
    ribs: float  # distance of one rib from the next
    tissue: float  # density of the chest wall
    breasts: float  # density of their shadows

    @classmethod
    def drawn(cls, rng: np.random.Generator, female: bool) -> Anatomy:
        """Draw a patient's build; women are a little narrower."""
        return cls(
            thorax=rng.normal(132 if female else 140, 7),
            top=rng.normal(42, 6),
            dome=rng.normal(226, 9),
            heart=float(np.clip(rng.normal(0.45, 0.025), 0.39, 0.51)),
            ribs=rng.normal(24, 1.5),
            tissue=rng.normal(0.58, 0.03),
            breasts=abs(rng.normal(0.07, 0.03)) if female else 0.0,
        )


def frontal(anatomy: Anatomy, severity: Mapping[str, float], device: bool, rng: np.random.Generator) -> Field:
    """Draw a frontal view: grey levels, float32 (320, 390) in [0, 1].

    `severity` holds a finding's extent in [0, 1] by its CheXpert name (absent or 0: no sign of it), `device` draws a
    central line. What differs from scan to scan (positioning, breath, exposure, noise) comes from `rng`, where and how
    a finding shows from a stream of its own: with the same `rng`, two pictures differ by their findings only.
    """
    signs = rng.spawn(1)[0]
    y, x = _grid(rng.normal(0, 5))
    ax, half = np.abs(x), anatomy.thorax * rng.normal(1, 0.015)
    breath = rng.normal(0, 5)
    side = 1 if rng.random() < 0.5 else -1  # the side that an unequal finding prefers

    plate = severity.get("Atelectasis", 0.0)
    left = anatomy.dome + breath + 7 - (26 * plate if side > 0 else 0)
    right = anatomy.dome + breath - (26 * plate if side < 0 else 0)
    dome = np.where(x > 0, np.float32(left), np.float32(right))
    u = np.clip((y - anatomy.top) / (anatomy.dome + 40 - anatomy.top), 0, 1)
    lateral = half * (0.30 + 0.70 * np.sin(np.minimum(u * 1.5, 1) * math.pi / 2) ** 0.8) * (u > 0)
    base = dome + 46 * np.clip((ax - 0.45 * half) / (0.55 * half), -0.5, 1) ** 2
    medial = 27 + 6 * np.cos(u * 7) - 8 * (1 - u)
    lung = _ramp(lateral - ax, 7) * _ramp(ax - medial, 8) * _ramp(base - y, 5) * _ramp(y - anatomy.top, 14)

    ratio = anatomy.heart + 0.16 * severity.get("Cardiomegaly", 0.0) + rng.normal(0, 0.008)
    heart = _heart(x, y, width=ratio * half, bottom=anatomy.dome + breath + 8)
    haze = _edema(x, y, severity.get("Edema", 0.0), signs)
    haze = haze + _patches(half, severity.get("Consolidation", 0.0), x, y, signs)
    fluid = _effusion(x, y, half, dome, severity.get("Pleural Effusion", 0.0), side, signs)
    air = lung * (1 - heart) * (1 - fluid) * (1 - np.clip(haze, 0, 0.85))

    shoulders = _ramp(half + 34 + 18 * _ramp(y - 90, 90) - ax, 12) * _ramp(y - 26 - 0.0022 * ax**2, 16)
    body = np.maximum(shoulders, _ramp(52 - y / 5 - ax, 12) * (y < 60))
    spine = 0.06 * _ramp(15 - ax, 6) * (1 + 0.35 * np.sin(y * math.tau / 21))
    middle = 0.09 * _ramp(medial - ax, 10) - 0.07 * _ramp(7 - np.abs(x + 1), 4) * _ramp(110 - y, 20)
    breasts = anatomy.breasts * _ramp(1 - np.hypot((ax - 0.55 * half) / (0.5 * half), (y - anatomy.dome + 5) / 52), 0.2)
    lines = _ribs(anatomy, half, rng) * (0.5 + 0.5 * air) + _vessels(severity.get("Edema", 0.0), rng) * air
    if plate > 0:
        lines += _plates(half, anatomy.dome, plate, side, signs) * (lung > 0.2) * (1 - 0.6 * heart)
    if device:
        lines += _central_line(signs)
    density = body * (anatomy.tissue + spine + middle + 0.10 * heart + breasts + lines - 0.43 * air)
    density += 0.08 * body * np.maximum(_ramp(y - base, 12), fluid * _ramp(lateral - ax, 7))
    return _expose(density, rng, marker=rng.random() < 0.7)


def lateral(anatomy: Anatomy, severity: Mapping[str, float], rng: np.random.Generator) -> Field:
    """Draw a lateral view, float32 (320, 390) in [0, 1]; arguments as in `frontal`."""
    y, x = _grid(rng.normal(0, 6))
    depth = 0.72 * anatomy.thorax
    u = np.clip((y - anatomy.top) / (anatomy.dome + 40 - anatomy.top), 0, 1)
    base = anatomy.dome - 6 + 30 * np.clip(x / depth, -0.3, 1) ** 2
    width = depth * (0.45 + 0.55 * np.sin(np.minimum(u * 1.4, 1) * math.pi / 2))
    lung = _ramp(width - np.abs(x), 8) * _ramp(base - y, 5) * _ramp(y - anatomy.top, 14)
    ratio = anatomy.heart + 0.16 * severity.get("Cardiomegaly", 0.0)
    heart = _ramp(1 - np.hypot((x + 0.42 * depth) / (1.15 * ratio * depth), (y - anatomy.dome + 28) / 48), 0.15)
    haze = _edema(x, y, severity.get("Edema", 0.0), rng)
    level = anatomy.dome + 22 - 75 * severity.get("Pleural Effusion", 0.0)
    fluid = _ramp(y - level + 0.15 * (x - 0.4 * depth), 6) * _ramp(x - 0.2 * depth, 20)
    air = lung * (1 - 0.8 * heart) * (1 - fluid) * (1 - np.clip(haze, 0, 0.8))
    spine = 0.16 * _ramp(17 - np.abs(x - depth * 0.82), 6) * (1 + 0.3 * np.sin(y * math.tau / 21))
    body = _ramp(depth + 24 + 14 * _ramp(y - 90, 90) - np.abs(x), 10)
    density = body * (anatomy.tissue + 0.06 + spine + 0.06 * heart - 0.36 * air) + 0.05 * body * _ramp(y - base, 12)
    return _expose(density, rng, marker=False)


def _grid(middle: float) -> tuple[Field, Field]:
    y = np.arange(0, HEIGHT, STEP, dtype=np.float32)[:, None]
    x = np.arange(0, WIDTH, STEP, dtype=np.float32)[None, :]
    return y, x - np.float32(WIDTH / 2 + middle)


def _ramp(distance: Field, width: float) -> Field:
    """Return 1 well inside (distance > 0), 0 well outside, a straight ramp of `width` between."""
    return np.clip(distance / width + 0.5, 0, 1)


def _blob(x: Field, y: Field, cx: float, cy: float, sx: float, sy: float) -> Field:
    return np.exp(-0.5 * ((x - cx) / sx) ** 2) * np.exp(-0.5 * ((y - cy) / sy) ** 2)


def _clouds(rng: np.random.Generator, cells: int) -> Field:
    """Return smooth noise of unit scale with about `cells` blobs along the height."""
    coarse = rng.standard_normal((cells, cells * WIDTH // HEIGHT)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH // STEP, HEIGHT // STEP), Image.Resampling.BICUBIC))


def _heart(x: Field, y: Field, width: float, bottom: float) -> Field:
    """Left ventricle with its apex down to the patient's left, right atrium, great vessels and aortic knob."""
    tilt = math.radians(33)
    u, v = x - 0.45 * width, y - (bottom - 38)
    along, across = u * math.cos(tilt) + v * math.sin(tilt), v * math.cos(tilt) - u * math.sin(tilt)
    ventricle = _ramp(1 - np.hypot(along / (0.98 * width), across / (0.72 * width)), 0.16)
    atrium = _ramp(1 - np.hypot((x + 0.08 * width) / (0.58 * width), (y - bottom + 44) / 50), 0.2)
    vessels = _ramp(30 - np.abs(x - 4), 10) * _ramp(y - 84, 20) * (y < bottom)
    knob = _ramp(1 - np.hypot((x - 22) / 17, (y - 100) / 17), 0.4)
    return np.maximum(np.maximum(ventricle, atrium), np.maximum(0.8 * vessels, 0.8 * knob))


def _edema(x: Field, y: Field, severity: float, rng: np.random.Generator) -> Field:
    """Haze around both hila, with a fine reticular texture."""
    if severity == 0:
        return np.zeros_like(x + y)
    wings = sum(_blob(x, y, side * rng.normal(58, 4), rng.normal(150, 6), 36, 52) for side in (-1, 1))
    return severity * wings * (0.32 + 0.16 * _clouds(rng, 40))


def _patches(half: float, severity: float, x: Field, y: Field, rng: np.random.Generator) -> Field:
    """One patch of uneven opacity (two where it is severe) somewhere in the lungs."""
    patches = np.zeros_like(x + y)
    if severity == 0:
        return patches
    for _ in range(2 if severity > 0.75 else 1):
        cx, cy = (1 if rng.random() < 0.5 else -1) * rng.uniform(0.42, 0.72) * half, rng.uniform(85, 205)
        for _ in range(4):
            dx, dy = rng.normal(0, 11, 2)
            patches += _blob(x, y, cx + dx, cy + dy, rng.uniform(11, 19), rng.uniform(11, 19))
    return (0.25 + 0.75 * severity) * np.clip(patches, 0, 1.2) * (0.75 + 0.2 * _clouds(rng, 24))


def _effusion(
    x: Field, y: Field, half: float, dome: Field, severity: float, side: int, rng: np.random.Generator
) -> Field:
    """Fluid with a meniscus: it climbs the chest wall on one side, on both where it is severe."""
    fluid = np.zeros_like(x + y)
    for where, extent in ((side, severity), (-side, 0.7 * severity if severity > 0.6 else 0.0)):
        if extent > 0:
            out = np.clip(where * x / half, 0, 1)
            level = dome + 44 - extent * rng.normal(75, 8) * (0.45 + 0.55 * out**3)
            fluid += _ramp(y - level, 9) * (where * x > 0)
    return fluid


class _Ink:
    """Lines on an empty grid; coordinates and widths in picture pixels."""

    def __init__(self) -> None:
        self.image = Image.new("L", (WIDTH // STEP, HEIGHT // STEP))
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points: Iterable[tuple[float, float]], ink: float, width: float) -> None:
        scaled = [(x / STEP, y / STEP) for x, y in points]
        self.draw.line(scaled, fill=round(255 * ink), width=max(1, round(width / STEP)), joint="curve")

    def field(self, blur: float = 0.6) -> Field:
        return np.asarray(self.image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32) / 255


def _ribs(anatomy: Anatomy, half: float, rng: np.random.Generator) -> Field:
    """Nine pairs, their back parts stronger than their front parts, and the clavicles."""
    ink, middle = _Ink(), WIDTH / 2
    steps = [0.12 + 0.1 * number for number in range(10)]
    for number in range(9):
        y0 = anatomy.top + 2 + number * anatomy.ribs + rng.normal(0, 1)
        reach = half * min(1.0, 0.62 + 0.12 * number)
        for side in (-1, 1):
            back = [(middle + side * reach * s, y0 - 10 * math.sin(s * 3) + 26 * s**2) for s in steps]
            front = [(middle + side * reach * s, y0 + 62 - 34 * s**1.5) for s in steps[4:]]
            ink.line(back, 0.8, 6)
            ink.line(front, 0.45, 6)
    for side in (-1, 1):
        ends = (middle + side * 18, anatomy.top + 26), (middle + side * (half + 10), anatomy.top - 6)
        ink.line(ends, 1.0, 8)
    return 0.10 * ink.field()


def _vessels(edema: float, rng: np.random.Generator) -> Field:
    """Branching vessels from both hila, fuller in edema."""
    ink = _Ink()
    for side in (-1, 1):
        for angle in rng.uniform(-1.25, 1.25, 11).tolist():
            x, y, width = WIDTH / 2 + side * 36, 145.0 + rng.normal(0, 8), 5.0
            for _ in range(6):
                angle += rng.normal(0, 0.22)
                start = x, y
                x, y = x + side * 15 * math.cos(angle), y + 15 * math.sin(angle)
                ink.line((start, (x, y)), (0.55 + 0.35 * edema) * min(1.0, width / 2), width)
                width *= 0.75
    return 0.25 * ink.field()


def _plates(half: float, dome: float, severity: float, side: int, rng: np.random.Generator) -> Field:
    """Plate-like atelectasis: one to three nearly level bands above the diaphragm."""
    ink = _Ink()
    for _ in range(1 + round(2 * severity)):
        x, y = WIDTH / 2 + side * rng.uniform(0.45, 0.7) * half, dome - rng.uniform(12, 55)
        dx, dy = rng.uniform(24, 42), rng.normal(0, 9)
        ink.line(((x - dx, y - dy), (x + dx, y + dy)), 1.0, 5 + 5 * severity)
    return (0.14 + 0.20 * severity) * ink.field()


def _central_line(rng: np.random.Generator) -> Field:
    ink = _Ink()
    x, tip = WIDTH / 2 - rng.uniform(16, 26), rng.uniform(130, 165)
    ink.line([(x - 22, 30), (x - 8, 62), (x, 95), (x + 2, tip)], 1.0, 3)
    return 0.22 * ink.field(0.4)


def _expose(density: Field, rng: np.random.Generator, marker: bool) -> Field:
    """Turn density into grey levels: uneven tissue, contrast, rotation, a burned-in side marker, noise."""
    density = density * (1 + 0.035 * _clouds(rng, 9))
    exposed = np.clip(density, 0, None) ** rng.uniform(0.85, 1.2) * rng.uniform(0.95, 1.15) + rng.normal(0.03, 0.01)
    angle, shift = math.radians(rng.normal(0, 2.0)), rng.normal(0, 4)
    cos, sin, cx, cy = math.cos(angle), math.sin(angle), WIDTH / 2, HEIGHT / 2
    turned = (cos, sin, cx - cos * cx - sin * cy, -sin, cos, cy + sin * cx - cos * cy + shift)
    picture = Image.fromarray(exposed).transform(
        (WIDTH, HEIGHT), Image.Transform.AFFINE, [value / STEP for value in turned], Image.Resampling.BILINEAR
    )
    if marker:
        ImageDraw.Draw(picture).text((WIDTH - int(rng.integers(28, 44)), int(rng.integers(14, 40))), "L", fill=0.95)
    noise = rng.uniform(0.012, 0.03) * rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32)
    return np.clip(np.asarray(picture) + noise, 0, 1)
