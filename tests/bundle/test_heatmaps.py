"""Heat maps of `predict`: as torch enlarges them, and in their folder, whatever a scan is called."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from damcli.bundle import heatmaps
from damcli.data.overlays import picture
from tests.data.test_overlays import chunks

FINDINGS = ["Edema", "Pleural Effusion"]
HOSTILE = [
    "../../outside.dcm",
    "/etc/passwd",
    "//host/share/1.dcm",
    "a/../../b.dcm",
    "a/./b.dcm",
    "a//b.dcm",
    "a/b.dcm/",
    "C:\\scans\\1.dcm",
    "..\\..\\1.dcm",
    "nul\0byte.dcm",
    "line\nbreak.dcm",
    "odd\udcffbyte.dcm",
    "dots.../1.dcm",
    "a" * 5000,
    "ö" * 200 + "/1.dcm",
    "/".join(["deep" * 20] * 60) + "/1.dcm",
    "..",
    ".",
    "/",
    "",
]


@pytest.mark.parametrize("shape", [(64, 64), (60, 84), (7, 9)])
def test_maps_are_enlarged_as_torch_does(shape: tuple[int, int]) -> None:
    cam = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    fine = interpolate(torch.from_numpy(cam).relu()[None, None], shape, mode="bilinear", align_corners=False)[0, 0]
    heat = heatmaps.heat(cam, shape)
    np.testing.assert_allclose(heat, fine / fine.max(), atol=2e-6)
    assert heat.dtype == np.float32
    assert heat.max() == 1
    np.testing.assert_allclose(heatmaps.heat(1e-20 * cam, shape), heat, atol=2e-6)


def test_what_speaks_for_nothing_stays_cold() -> None:
    for cam in (np.full((3, 3), -1.0), np.zeros((3, 3)), np.full((3, 3), np.nan)):
        np.testing.assert_array_equal(heatmaps.heat(cam.astype(np.float32), (9, 9)), np.zeros((9, 9)))
    cam = np.array([[np.inf, 0], [np.nan, 2]], np.float32)
    np.testing.assert_array_equal(np.argwhere(heatmaps.heat(cam, (8, 8)) == 1).min(axis=0), [6, 6])


@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_picture_per_finding_lies_where_the_scan_did(tmp_path: Path, channels: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (400, 400, *channels), np.uint8)
    cams = np.zeros((2, 4, 4), np.float32)
    cams[0, 0, 3] = 5
    heatmaps.write(tmp_path, "a/b.dcm", FINDINGS, pixels, cams)
    made = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.relative_to(tmp_path).as_posix() for path in made] == [
        "a/b.dcm.Edema.png",
        "a/b.dcm.Pleural_Effusion.png",
    ]
    for path, cam in zip(made, cams, strict=True):
        assert path.read_bytes() == picture(pixels, heatmaps.heat(cam, (400, 400)))
        assert set(chunks(path.read_bytes())) == {"IHDR", "IDAT", "IEND"}
    hot, cold = (cv2.imread(str(path)).astype(int) for path in made)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if channels else pixels
    np.testing.assert_array_equal(cold, np.repeat(grey[..., None], 3, axis=2))
    changed = np.argwhere((hot != cold).any(axis=2))
    assert changed[:, 0].max() < 200, "only the upper right is hot"
    assert changed[:, 1].min() >= 200


def test_hostile_names_stay_inside(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "maps"
    for name in HOSTILE:
        heatmaps.write(folder, name, FINDINGS, np.zeros((8, 8), np.uint8), np.zeros((2, 2, 2), np.float32))
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == 2 * len(HOSTILE)
    assert all(path.is_relative_to(folder) for path in made)


names = st.lists(
    st.one_of(st.sampled_from(["", ".", "..", "a", "A", "b.png", "b.png.Edema.png"]), st.text(max_size=8)), max_size=5
).map("/".join)


@given(st.sets(names, max_size=8), st.lists(st.text(max_size=80), min_size=1, max_size=4, unique=True))
def test_no_two_maps_share_a_file(given_names: set[str], findings: list[str]) -> None:
    folder = Path("maps")
    made = [path for name in sorted(given_names) for path in heatmaps.paths(folder, name, findings)]
    assert len(set(made)) == len(made)
    for path in made:
        assert path.is_relative_to(folder)
        assert ".." not in path.parts
        assert all(len(part.encode()) <= 240 for part in path.parts)
        assert "\0" not in str(path)
        # None is a folder of another, so that all can be written.
        assert not any(parent in made for parent in path.parents)


def test_findings_that_differ_in_case_alone_are_kept_apart() -> None:
    made = heatmaps.paths(Path(), "1.dcm", ["edema", "Edema", "EDEMA!", "x" * 70 + "1", "x" * 70 + "2", "/..", "*"])
    assert len({str(path).casefold() for path in made}) == 7
    assert all(path.parent == Path() for path in made)
