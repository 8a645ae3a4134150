"""`predict --heatmaps`: a picture per scan and finding of where in the scan the model saw it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from damcli import files
from damcli.data import overlays

# What the file systems of some platform do not take or take for a path, half characters, and dots at the end.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\\ud800-\udfff]|[. ]+$')
# Bytes of a part of the scan's name, of a finding's, and of a path below the folder; most file systems take 255 a part.
_LONGEST, _LONGEST_FINDING, _LONGEST_PATH = 120, 60, 1000


def write(
    folder: Path, name: str, findings: Sequence[str], pixels: npt.NDArray[np.uint8], cams: npt.NDArray[np.float32]
) -> None:
    """Write `folder`/`name`.FINDING.png for each finding: the scan as the model sees it, under its heat map.

    `pixels` are uint8 (H, W) or (H, W, 3), `cams` float32 (K, h, w) the model's class activation maps of the scan.
    Each is made into a heat map in [0, 1]: what is below 0, or no number, is 0; it is enlarged to the scan (bilinear)
    and divided by its own maximum, so that 1 is the place that speaks most for the finding, whether it does so weakly
    or strongly. Where the map is 0 the scan is as it was.

    Files are whole or not there. `name` may be anything: no file lies outside `folder`. Raises `MachineError` where
    the disk is full or not writable.
    """
    for cam, path in zip(cams, paths(folder, name, findings), strict=True):
        png = overlays.picture(pixels, heat(cam, (pixels.shape[0], pixels.shape[1])))
        with files.replacing(path) as draft:
            draft.write_bytes(png)


def heat(cam: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return a class activation map (h, w) as a heat map, float32 `shape` in [0, 1], as `write` says."""
    speaking = np.where(np.isfinite(cam), cam, 0).clip(0).astype(np.float32)
    fine = np.asarray(cv2.resize(speaking, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
    return fine / (fine.max() or np.float32(1))


def paths(folder: Path, name: str, findings: Sequence[str]) -> list[Path]:
    """Return where the heat maps of a scan lie, one for each finding: below `folder` as the scan below what was given.

    A name that cannot be a path there, since it is absolute, has `..` in it, is too long or holds what file systems do
    not take, is made into one that can, with a hash of the name so that it stays the only one.

    >>> [path.as_posix() for path in paths(Path("maps"), "a/b.dcm", ["Edema", "Pleural Effusion"])]
    ['maps/a/b.dcm.Edema.png', 'maps/a/b.dcm.Pleural_Effusion.png']
    >>> paths(Path("maps"), "../b.dcm", ["Edema"])[0].as_posix()
    'maps/_/b.dcm-7d00fde333ea.Edema.png'
    """
    given = [part for part in name.split("/") if part]
    *folders, file = [_shortened(_UNSAFE.sub("_", part), _LONGEST) for part in given or ["_"]]
    # So a folder never stands where a heat map should go.
    folders = [f"{part}_" if part.lower().endswith(".png") else part for part in folders]
    if len("/".join(folders).encode()) > _LONGEST_PATH:
        folders = []
    if "/".join([*folders, file]) != name:
        file += f"-{_hash(name)}"
    return [folder.joinpath(*folders, f"{file}.{slug}.png") for slug in _slugs(findings)]


def _slugs(findings: Sequence[str]) -> list[str]:
    """Return what findings are called in the names of files, all of them unlike, on any file system.

    >>> _slugs(["Edema", "EF < 40 %"]), [slug[:4] for slug in _slugs(["A/B", "a b"])]
    (['Edema', 'EF_40_'], ['A_B-', 'a_b-'])
    """
    slugs = [_shortened(re.sub(r"\W+", "_", finding), _LONGEST_FINDING) for finding in findings]
    count = Counter(slug.casefold() for slug in slugs)
    pairs = zip(slugs, findings, strict=True)
    return [slug if count[slug.casefold()] == 1 else f"{slug}-{_hash(finding)}" for slug, finding in pairs]


def _shortened(text: str, longest: int) -> str:
    return text.encode()[:longest].decode(errors="ignore")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
