"""Where in a scan a network sees a finding: Grad-CAM on its last feature map, by captum (extra `heatmaps`)."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from damcli.deepauc.network import Classifier
from damcli.errors import MachineError, UsageError


def check() -> None:
    """Raise `MachineError` where captum is not installed."""
    if importlib.util.find_spec("captum") is None:
        raise MachineError("heat maps need captum, which is not installed", fix="pip install 'damcli[heatmaps]'")


def heat(network: Classifier, images: Tensor, finding: int) -> Tensor:
    """Return heat maps of a finding, float32 (n, H, W) in [0, 1] on the CPU.

    `images` are those that the network takes, float (n, C, H, W) in [0, 1] on its device; `finding` is the number of
    its logit. The channels of the last feature map before the pooling are summed, weighted by the mean gradient of
    the logit, what is below 0 is set to 0 (Grad-CAM: Selvaraju et al., ICCV 2017, equations 1 and 2), and the map is
    enlarged to the image (bilinear) and divided by its own maximum: 1 is the place of the image that speaks most for
    the finding, whether it does so weakly or strongly, so that maps of two images do not compare. A map that is 0
    everywhere stays so: nothing in it speaks for the finding.

    The network is run in evaluation mode, in whatever mode it was before, and its gradients are left alone. Raises
    `MachineError` where captum is not installed, `UsageError` for a backbone that has no such map (one of tokens), or
    one of a single point.
    """
    check()
    from captum.attr import LayerGradCam

    training = network.training
    network.eval()
    try:
        features, channels_last = _features(network, images)
        maps, head = nn.Identity(), network.backbone.forward_head

        def logits(seen: Tensor) -> Tensor:
            passed = maps(seen)
            out: Tensor = head(passed.permute(0, 2, 3, 1) if channels_last else passed)
            return out

        with torch.enable_grad():
            coarse = LayerGradCam(logits, maps).attribute(features.requires_grad_(), finding, relu_attributions=True)
    finally:
        network.train(training)
    size = (images.shape[-2], images.shape[-1])
    fine = F.interpolate(coarse.detach().float(), size, mode="bilinear", align_corners=False)[:, 0]
    highest = fine.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, fine / highest, 0.0).cpu()


@torch.no_grad()
def _features(network: Classifier, images: Tensor) -> tuple[Tensor, bool]:
    """Return the last feature map, (n, C, h, w), and whether the backbone itself has its channels last.

    timm's models are two functions after one another, `forward_features` and `forward_head`: what lies between is the
    map. That this holds for a backbone is seen from the logits.
    """
    backbone: Any = network.backbone
    taken = network.normalised(images)
    name = network.backbone_name
    refusal = UsageError(
        f"{name} has no feature map of the image before its last layer, and so no heat maps",
        fix="heat maps are for convolutional networks, such as densenet121",
    )
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        raise refusal
    features = backbone.forward_features(taken)
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise refusal
    if not torch.allclose(backbone.forward_head(features), backbone(taken), rtol=1e-3, atol=1e-3):
        raise refusal
    channels_last = str(getattr(backbone, "output_fmt", "NCHW")) == "NHWC"
    maps = (features.permute(0, 3, 1, 2) if channels_last else features).clone()
    if maps.shape[-2:] == (1, 1):
        size = images.shape[-1]
        raise UsageError(f"of images of {size} pixels the last feature map of {name} is a single point: no heat maps")
    return maps, channels_last
