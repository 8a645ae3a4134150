"""Class activation maps in the graph: of every scan and finding, what each place of the last feature map adds.

Zhou et al., "Learning deep features for discriminative localization" (CVPR 2016), equation 2. Where a network ends in
the mean of its feature map F over all places and one linear layer (W, b), the map of finding k is the sum over the
channels c of W[k, c] · F[c, y, x], plus b[k]: its mean over the places is the logit. For other networks there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import helper
from torch import Tensor, nn

from damcli.deepauc.network import Classifier
from damcli.errors import UsageError

# Of the largest feature: the same sums in another order.
ROUNDING = 1e-4


class Mapped(nn.Module):
    """A network that returns its logits (N, K) and its maps (N, K, h, w) for images (N, C, H, W) in [0, 1]."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        backbone: Any = self.network.backbone
        features = backbone.forward_features(self.network.normalised(images))
        layer = backbone.get_classifier()
        weights = layer.weight.flatten(1)[..., None, None]
        return backbone.forward_head(features), F.conv2d(_channels_first(backbone, features), weights, layer.bias)


@torch.no_grad()
def grid(network: Classifier, size: int, channels: int) -> tuple[int, int]:
    """Return the height and width of a network's maps, for images of `size` pixels.

    That it ends in a mean and one linear layer is seen from what its last layer is given. Raises `UsageError` where
    that is something else, or where the map is a single place.
    """
    backbone: Any = network.backbone
    refusal = UsageError(
        f"{network.backbone_name} does not end in the mean of a feature map and one linear layer, and has no class"
        " activation maps",
        where="--cam",
        fix="leave out --cam; densenet121, resnet50, efficientnet_b0 have them",
    )
    layer = backbone.get_classifier()
    if not isinstance(layer, nn.Linear | nn.Conv2d) or not hasattr(backbone, "forward_features"):
        raise refusal
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        network.eval()(images)
    finally:
        hook.remove()
    features = backbone.forward_features(network.normalised(images))
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise refusal
    features = _channels_first(backbone, features)
    pooled, mean = given[0].flatten(1), features.mean((2, 3))
    if pooled.shape != mean.shape or not (pooled - mean).abs().max() <= ROUNDING * features.abs().max():
        raise refusal
    height, width = features.shape[2:]
    if height * width == 1:
        raise UsageError(
            f"of images of {size} pixels the feature map of {network.backbone_name} is a single place: no maps",
            where="--cam",
            fix="leave out --cam",
        )
    return height, width


def bilinear_matrix(size: int, larger: int) -> np.ndarray:
    """Return the float32 (larger, size) matrix that enlarges one side of a map, as `torch`'s bilinear interpolation.

    Centres of pixels are at i + 1/2; beyond the outermost centres the map goes on as it is there.

    >>> bilinear_matrix(2, 4)
    array([[1.  , 0.  ],
           [0.75, 0.25],
           [0.25, 0.75],
           [0.  , 1.  ]], dtype=float32)
    """
    places = ((np.arange(larger) + 0.5) * size / larger - 0.5).clip(0, size - 1)
    return (1 - np.abs(places[:, None] - np.arange(size))).clip(0).astype(np.float32)


def nodes(
    maps: Mapping[str, tuple[int, int]], votes: str, voters: str, output: str, prefix: str
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], tuple[int, int]]:
    """Return nodes from the members' maps to `output`, float (N, K, h, w), their constants, and its grid (h, w).

    `maps` are the members' tensors with their grids; all are enlarged to the largest. The mean over the members is
    that of the scores: `votes` (outputs of all members, K) and their sums `voters` (K). Names are under `prefix`.
    """
    height, width = (max(sides) for sides in zip(*maps.values(), strict=True))
    made, constants, alike = [], {}, []

    def node(kind: str, inputs: Sequence[str], result: str, **attributes: Any) -> str:
        made.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    for number, (name, (rows, columns)) in enumerate(maps.items()):
        at, own = name, f"{prefix}{number}."
        if (rows, columns) != (height, width):
            constants[own + "rows"] = bilinear_matrix(rows, height)
            constants[own + "columns"] = np.ascontiguousarray(bilinear_matrix(columns, width).T)
            higher = node("MatMul", [own + "rows", name], own + "higher")
            at = node("MatMul", [higher, own + "columns"], own + "alike")
        alike.append(at)
    beside = node("Concat", alike, prefix + "all", axis=1)
    last = node("Transpose", [beside], prefix + "last", perm=[0, 2, 3, 1])
    sums = node("MatMul", [last, votes], prefix + "sums")
    mean = node("Div", [sums, voters], prefix + "mean")
    node("Transpose", [mean], output, perm=[0, 3, 1, 2])
    return made, constants, (height, width)


def _channels_first(backbone: Any, features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2) if str(getattr(backbone, "output_fmt", "NCHW")) == "NHWC" else features
