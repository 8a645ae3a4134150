"""Grad-CAM against its equations by hand, and where it points; what has no map is refused by name."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from damcli.deepauc import heatmaps
from damcli.deepauc.network import Classifier
from damcli.errors import MachineError, UsageError


def network(backbone: str, channels: int = 3) -> Classifier:
    torch.manual_seed(3)
    made = Classifier(backbone, 4, in_chans=channels).eval()
    made.reset_classifier(seed=1)
    return made


def images(size: int, n: int = 3, channels: int = 1) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def by_hand(made: Classifier, given: Tensor, finding: int) -> Tensor:
    """Equations 1 and 2 by autograd alone, enlarged and divided as it is said."""
    scaled = (given.expand(-1, made.in_chans, -1, -1) - made.mean) / made.std
    maps = made.backbone.forward_features(scaled).detach().requires_grad_()
    made.backbone.forward_head(maps)[:, finding].sum().backward()
    assert maps.grad is not None
    weights = maps.grad.mean(dim=(2, 3), keepdim=True)
    cam = (weights * maps).sum(dim=1, keepdim=True).clamp(min=0).detach()
    cam = F.interpolate(cam, given.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return torch.stack([image / image.max() if image.max() > 0 else image for image in cam])


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("densenet121", 64),
        ("resnet18", 96),
        ("tf_efficientnet_lite0", 64),
        ("inception_resnet_v2", 128),
        ("mobilenetv3_small_050", 64),
        ("test_convnext", 64),
    ],
)
def test_equations_of_grad_cam(backbone: str, size: int) -> None:
    made, given = network(backbone), images(size, n=2)
    found = {finding: heatmaps.heat(made, given, finding) for finding in (1, 3)}
    for finding, heat in found.items():
        assert (heat.shape, heat.dtype) == ((2, size, size), torch.float32)
        assert heat.min() >= 0
        assert heat.max() <= 1
        torch.testing.assert_close(heat, by_hand(made, given, finding), atol=1e-4, rtol=1e-3)
    assert any((heat.amax(dim=(1, 2)) == 1).any() for heat in found.values())
    assert not torch.equal(found[1], found[3])


@pytest.mark.parametrize("channels", [1, 3])
def test_it_points_at_what_speaks_for_the_finding(channels: int) -> None:
    made = network("resnet18", channels)
    given = torch.zeros(2, 1, 128, 128)
    given[0, :, 96:, :32] = 1  # a bright square, below on the left
    given[1, :, :32, 64:96] = 1
    scaled = (given.expand(-1, channels, -1, -1) - made.mean) / made.std
    with torch.no_grad():
        maps = made.backbone.forward_features(scaled)
        made.backbone.fc.weight[2] = maps[0, :, 3, 0] - maps[0].mean(dim=(1, 2))
    heat = heatmaps.heat(made, given, 2)
    row, column = divmod(int(heat[0].argmax()), 128)
    assert row >= 96
    assert column < 32


def test_channels_that_come_last_are_the_channels() -> None:
    made = network("swin_tiny_patch4_window7_224")
    given = images(224, n=1)
    heat = heatmaps.heat(made, given, 1)
    scaled = (given.expand(-1, 3, -1, -1) - made.mean) / made.std
    maps = made.backbone.forward_features(scaled).detach().requires_grad_()
    made.backbone.forward_head(maps)[:, 1].sum().backward()
    cam = (maps.grad.mean(dim=(1, 2), keepdim=True) * maps).sum(dim=3).clamp(min=0).detach()
    cam = F.interpolate(cam[:, None], (224, 224), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(heat, cam / cam.max(), atol=1e-4, rtol=1e-3)


def test_what_speaks_against_the_finding_is_left_dark() -> None:
    made = network("resnet18")
    with torch.no_grad():
        made.backbone.fc.weight[0] = -1.0
        made.backbone.fc.weight[1] = 1.0
    given = images(96)
    assert torch.equal(heatmaps.heat(made, given, 0), torch.zeros(3, 96, 96))
    assert torch.equal(heatmaps.heat(made, given, 1).amax(dim=(1, 2)), torch.ones(3))


def test_an_image_has_one_map_whatever_it_is_shown_with_and_the_network_stays_as_it_was() -> None:
    made, given = network("densenet121").train(), images(64)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with torch.no_grad():
        together = heatmaps.heat(made, given, 0)
    assert made.training
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert all(weights.grad is None for weights in made.parameters())
    torch.testing.assert_close(heatmaps.heat(made, given[1:2], 0), together[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("backbone", "size"), [("test_vit", 160), ("mixer_s32_224", 224)])
def test_what_has_tokens_is_refused_by_its_name(backbone: str, size: int) -> None:
    with pytest.raises(UsageError, match=f"{backbone} has no feature map"):
        heatmaps.heat(network(backbone), images(size, 1), 0)


def test_a_single_point_is_no_map() -> None:
    with pytest.raises(UsageError, match="of images of 32 pixels the last feature map of test_resnet is a single"):
        heatmaps.heat(network("test_resnet"), images(32), 0)


def test_without_captum_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    for name in [name for name in sys.modules if name.split(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MachineError, match=r"pip install 'damcli\[heatmaps\]'") as refused:
        heatmaps.check()
    assert refused.value.exit_code == 5
