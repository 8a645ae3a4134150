"""Half precision: the networks alone, judged by the AUROC, and refused where that moves or cannot be told."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from damcli.bundle import build
from damcli.bundle.runtime import Model
from damcli.data import augment
from damcli.errors import GateError
from damcli.metrics.calibration import Calibration
from damcli.metrics.decisions import Decisions
from damcli.recipes import Augmentation

KINDS = (torch.nn.Conv2d, torch.nn.BatchNorm2d)
FLOAT, HALF, DOUBLE = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE"))


def by_torch(member, images):
    with torch.no_grad():
        pixels = torch.from_numpy(images[..., 0])[:, None] / 255
        return member.network(pixels).sigmoid().numpy()


def split_by(scores):
    """Labels that these scores tell apart without a mistake, the two in the middle left out."""
    order = scores.argsort(0).argsort(0)
    half = len(scores) // 2
    return np.where(abs(order - half + 0.5) < 1, np.nan, order >= half)


@pytest.fixture(scope="module")
def halved(make_member, draw, tmp_path_factory):
    """A member, scans, the model in half precision and its metadata."""
    member, images = make_member(["Edema", "Fracture"]), draw(20)
    path = tmp_path_factory.mktemp("halved") / "half.onnx"
    decisions = Decisions(
        tune_scans=10, method="temperature", calibration={"Edema": Calibration(method="temperature", slope=0.7)}
    )
    truth = split_by(by_torch(member, images))
    return member, images, path, build.export([member], path, images, truth, decisions=decisions, precision="fp16")


def test_scores_in_half_precision_are_near_pytorchs_and_their_order_stays(halved):
    member, images, path, info = halved
    expected = by_torch(member, images)[:, 1]
    got = Model.open(path, "cpu").score(images)[:, 1]
    assert 0 < np.abs(got - expected).max() < 5e-3
    assert (info.precision, info.parity.tolerance, info.parity.forced) == ("fp16", None, "")
    assert info.parity.auroc_difference <= 1e-3
    assert 1e-6 < info.parity.max_difference < 5e-3


def test_only_the_network_is_in_half_precision_and_its_last_layer_is_not(halved):
    _, images, path, _ = halved
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    own = [kind for name, kind in kinds.items() if name.startswith("member0.")]
    assert own.count(HALF) > 10 > own.count(FLOAT) > 0
    assert {kinds[name] for name in ("white", "votes", "voters")} == {FLOAT}
    assert {kind for name, kind in kinds.items() if name.startswith("calibration.")} >= {DOUBLE}
    scores = Model.open(path, "cpu").score(images)[:, 1].astype(np.float64)
    logits = np.log(scores / (1 - scores))
    rounded = logits.astype(np.float16).astype(np.float64)
    assert (np.abs(logits - rounded) > 1e-5).mean() > 0.5, "logits are finer than float16"


def test_every_kind_of_member_can_be_halved(make_member, draw, tmp_path):
    maps = augment.maps(Augmentation(rotate=20, flip=True), torch.arange(2))
    viewed = replace(make_member(["Edema"], size=48, seed=1), views=maps)
    others = [make_member(["Edema"], "test_vit", size=160, seed=2), make_member(["Edema"], "test_convnext", size=96)]
    images, path = draw(6, size=144), tmp_path / "m.onnx"
    images = np.pad(images, ((0, 0), (8, 8), (8, 8), (0, 0)))
    info = build.export([viewed, *others], path, images, precision="fp16", force=True)
    assert info.parity.max_difference < 5e-3
    # Parity compares with fp32 by PyTorch; the file is what is scored from here on.
    model = Model.open(path, "cpu")
    np.testing.assert_allclose(model.score(images[2:3]), model.score(images)[2:3], atol=2e-3)


def test_maps_are_made_in_half_precision_too(make_member, draw, tmp_path):
    member, images = make_member(["Edema"], size=96), draw(3, size=96)
    paths = tmp_path / "full.onnx", tmp_path / "half.onnx"
    build.export([member], paths[0], images, maps=True)
    build.export([member], paths[1], images, maps=True, precision="fp16", force=True)
    full, half = (Model.open(path, "cpu").run(images, cams=True) for path in paths)
    assert half.cams.dtype == np.float32
    np.testing.assert_allclose(half.cams, full.cams, atol=2e-2 * np.abs(full.cams).max())
    assert paths[1].stat().st_size < 0.7 * paths[0].stat().st_size


def test_an_auroc_that_moves_is_refused_unless_forced(make_member, draw, tmp_path):
    member = make_member(["Edema", "Fracture"])
    # Scans that differ in one pixel by one grey value, so that rounding changes their order.
    images = draw(1).repeat(24, axis=0)
    images[np.arange(24), np.arange(24), 20] ^= 1
    truth = split_by(by_torch(member, images))
    with pytest.raises(GateError, match=r"in fp16 the AUROC of \w+ moves by 0\.\d+ on 24 scans, more than 0\.001"):
        build.export([member], tmp_path / "m.onnx", images, truth, precision="fp16")
    assert list(tmp_path.iterdir()) == []
    info = build.export([member], tmp_path / "m.onnx", images, truth, precision="fp16", force=True)
    assert "moves by" in info.parity.forced
    assert info.parity.auroc_difference > 1e-3
    assert info.parity.forced in (tmp_path / "m.onnx.md").read_text(encoding="utf-8")
    assert Model.open(tmp_path / "m.onnx", "cpu").info.parity == info.parity


@pytest.mark.parametrize("truth", [None, np.array([[1.0], [np.nan], [1.0]])])
def test_where_no_finding_has_both_classes_nothing_can_be_told(make_member, draw, tmp_path, truth):
    with pytest.raises(GateError, match="cannot be told: no finding has both classes among 3 scans"):
        build.export([make_member(["Edema"])], tmp_path / "m.onnx", draw(3), truth, precision="fp16")


def test_numbers_beyond_half_precision_are_never_forced(make_member, draw, tmp_path):
    member, images = make_member(["Edema"]), draw(4)
    truth = split_by(by_torch(member, images))
    convolution, norm = (next(m for m in member.network.modules() if isinstance(m, k)) for k in KINDS)
    # The same function in float32; in float16, which ends at 65504, the first sums are infinite.
    convolution.weight.data *= 1e6
    norm.running_mean *= 1e6
    norm.running_var *= 1e12
    assert np.isfinite(by_torch(member, images)).all()
    with pytest.raises(GateError, match="differ from PyTorch's by nan"):
        build.export([member], tmp_path / "m.onnx", images, truth, precision="fp16", force=True)
    assert list(tmp_path.iterdir()) == []
