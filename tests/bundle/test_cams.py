"""Class activation maps in a model: Zhou's sum over the channels, whose mean is the logit, or a refusal."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from damcli.bundle import build, cams
from damcli.bundle.runtime import Model
from damcli.errors import GateError, UsageError


def by_hook(member, pixels):
    """Maps of a member from what its pooling layer is given, channel by channel, and its logits."""
    network, features = member.network, []
    hook = network.backbone.global_pool.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        logits = network(pixels)
    hook.remove()
    layer = network.backbone.get_classifier()
    weights, biases = layer.weight.detach(), layer.bias.detach()
    maps = torch.zeros(len(pixels), len(weights), *features[0].shape[2:])
    for finding, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        for channel, share in enumerate(weight):
            maps[:, finding] += share * features[0][:, channel]
        maps[:, finding] += bias
    return maps, logits.numpy()


def as_pixels(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize(("backbone", "channels"), [("test_resnet", 1), ("test_efficientnet", 3)])
def test_a_map_is_the_weighted_sum_of_the_features_and_its_mean_the_logit(
    make_member, draw, tmp_path, backbone, channels
):
    size = 96
    member = make_member(["Edema", "Fracture"], backbone, size=size, channels=channels)
    images, path = draw(5, size=size, channels=channels), tmp_path / "maps.onnx"
    info = build.export([member], path, images, maps=True)
    expected, logits = by_hook(member, as_pixels(images))
    model = Model.open(path, "cpu")
    for part in (slice(0, 5), slice(2, 3)):
        scores, maps = model.run(images[part], cams=True)
        np.testing.assert_allclose(maps, expected[part], atol=1e-4)
        np.testing.assert_allclose(maps.mean((2, 3)), logits[part], atol=1e-4)
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits[part])), atol=1e-5)
    assert np.ptp(expected.numpy(), axis=(2, 3)).min() > 1e-3, "the places differ"
    assert (info.cams.height, info.cams.width) == expected.shape[2:]
    assert model.run(images).cams is None


def test_maps_of_members_are_enlarged_to_the_finest_and_weighed_as_the_scores(make_member, draw, tmp_path):
    fine = replace(make_member(["Edema", "Mass"], "test_efficientnet", size=144, seed=1), weights={"Edema": 3.0})
    coarse = make_member(["Mass", "Fracture", "Edema"], "test_resnet", size=96, seed=2)
    images, path = draw(3, size=144), tmp_path / "two.onnx"
    info = build.export([fine, coarse], path, images, maps=True)
    a, _ = by_hook(fine, as_pixels(images))
    small = [cv2.resize(scan[..., 0].astype(np.float32), (96, 96), interpolation=cv2.INTER_AREA) for scan in images]
    b, _ = by_hook(coarse, torch.from_numpy(np.stack(small))[:, None] / 255)
    assert a.shape[2:] != b.shape[2:]
    b = F.interpolate(b, a.shape[2:], mode="bilinear", align_corners=False)
    expected = torch.stack([(3 * a[:, 0] + b[:, 2]) / 4, (a[:, 1] + b[:, 0]) / 2, b[:, 1]], 1)
    maps = Model.open(path, "cpu").run(images, cams=True).cams
    np.testing.assert_allclose(maps, expected, atol=1e-4)
    assert info.findings == ("Edema", "Mass", "Fracture")


@pytest.mark.parametrize(("size", "larger"), [(3, 7), (7, 10), (5, 5), (1, 4)])
def test_bilinear_matrix_is_torchs(size, larger):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(size, size)).astype(np.float32)
    matrix = cams.bilinear_matrix(size, larger)
    expected = F.interpolate(torch.from_numpy(image)[None, None], (larger, larger), mode="bilinear")[0, 0]
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-6)


@pytest.mark.parametrize(("backbone", "size"), [("test_vit", 160), ("test_convnext", 96), ("resnet20_cifar", 48)])
def test_backbones_that_end_otherwise_are_refused_by_name(make_member, backbone, size):
    with pytest.raises(UsageError, match=f"{backbone} does not end in the mean of a feature map"):
        build.check([make_member(["Edema"], backbone, size=size)], maps=True)


def test_a_head_of_zeros_does_not_hide_that_it_ends_otherwise(make_member):
    member = make_member(["Edema"], "test_convnext", size=96)
    layer = member.network.backbone.get_classifier()
    torch.nn.init.zeros_(layer.weight)
    with pytest.raises(UsageError, match="does not end in the mean"):
        build.check([member], maps=True)


def test_a_single_place_and_views_are_refused(make_member):
    with pytest.raises(UsageError, match="of 24 pixels the feature map of test_resnet is a single place"):
        build.check([make_member(["Edema"], size=24)], maps=True)
    viewed = replace(make_member(["Edema"], size=96), views=torch.eye(2, 3)[None])
    with pytest.raises(UsageError, match="test-time augmentation"):
        build.check([viewed], maps=True)


def test_maps_that_differ_from_pytorchs_are_not_written(make_member, draw, tmp_path, monkeypatch):
    matrix = cams.bilinear_matrix
    monkeypatch.setattr(cams, "bilinear_matrix", lambda size, larger: matrix(size, larger)[::-1].copy())
    members = [make_member(["Edema"], size=size, seed=size) for size in (144, 96)]
    with pytest.raises(GateError, match="maps differ from PyTorch's"):
        build.export(members, tmp_path / "m.onnx", draw(2, size=144), maps=True)
    assert list(tmp_path.iterdir()) == []
