"""Scans as pictures, with a heat map laid over their grey values."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

STRENGTH = 0.6  # of the heat map's colour where it is 1


def picture(
    pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32] | None = None, longest: int | None = None
) -> bytes:
    """Return a scan, uint8 (H, W) or (H, W, 3), as PNG; with a heat map (H, W) in [0, 1], on its grey values.

    The heat map's colours (inferno) are evenly spaced to the eye, and cover the scan as far as the map is high. A
    picture of more than `longest` pixels in height or width is made smaller. There is no text in the PNG.
    """
    shown: npt.NDArray = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    if heat is not None:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
        colour = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
        cover = STRENGTH * heat[..., None]
        shown = np.rint((1 - cover) * grey[..., None] + cover * colour).astype(np.uint8)
    scale = longest / max(shown.shape[:2]) if longest else 1
    if scale < 1:
        size = (max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale)))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    written, content = cv2.imencode(".png", shown)
    assert written
    return content.tobytes()
