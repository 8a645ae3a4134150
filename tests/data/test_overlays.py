"""Scans as pictures: their own pixels, a heat map as strong as it says, and nothing that says whose they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from damcli.data.overlays import picture


def read(png: bytes) -> npt.NDArray[np.uint8]:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def chunks(png: bytes) -> Iterator[str]:
    """Yield the kinds of a PNG's chunks: a text would be one of its own."""
    place = 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        yield png[place + 4 : place + 8].decode()
        place += length + 12


def test_pictures_are_the_pixels_and_hold_nothing_else() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40), np.uint8)
    np.testing.assert_array_equal(read(picture(pixels)), pixels)
    colour = np.random.default_rng(1).integers(0, 256, (50, 40, 3), np.uint8)
    np.testing.assert_array_equal(read(picture(colour))[..., ::-1], colour)
    large = picture(np.zeros((400, 640), np.uint8), longest=320)
    assert read(large).shape == (200, 320)
    for png in (picture(pixels), picture(colour), large, picture(pixels, np.ones((50, 40)))):
        assert set(chunks(png)) == {"IHDR", "IDAT", "IEND"}


def test_heat_covers_the_scan_as_far_as_it_is_high() -> None:
    pixels = np.full((8, 8), 100, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5], heat[3, 1] = 1, 0.5
    shown = read(picture(pixels, heat)).astype(int)
    inferno = cv2.applyColorMap(np.array([[128, 255]], np.uint8), cv2.COLORMAP_INFERNO)[0]
    np.testing.assert_array_equal(shown[0, 0], [100, 100, 100])
    np.testing.assert_allclose(shown[2, 5], 0.4 * 100 + 0.6 * inferno[1], atol=0.51)
    np.testing.assert_allclose(shown[3, 1], 0.7 * 100 + 0.3 * inferno[0], atol=0.51)
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 200
    np.testing.assert_array_equal(read(picture(colour, heat * 0))[0, 0], [60, 60, 60])
