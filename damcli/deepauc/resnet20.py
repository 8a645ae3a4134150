"""ResNet20 in its CIFAR form, which timm does not have; registered with timm as `resnet20_cifar`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from timm.layers.create_act import get_act_layer
from timm.layers.typing import LayerType
from timm.models import register_model
from torch import Tensor, nn

BLOCKS, WIDTHS = 3, (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions around an identity shortcut without weights (option A of the paper).

    Where the block halves the image and widens it, the shortcut takes every other pixel, and zeros are the new
    channels.
    """

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.stride, self.wider = outputs // inputs, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = activation()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.wider:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.wider // 2, self.wider // 2))
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        activated: Tensor = self.act2(residual + shortcut)
        return activated


class ResNet20(nn.Module):
    """The 20-layer residual network for small images: images (N, C, H, W) to logits (N, K), 0.27 M parameters.

    A 3 × 3 stem of 16 channels, three stages of three blocks with 16, 32 and 64, the mean over all pixels, one linear
    layer. He et al., "Deep residual learning" (CVPR 2016), section 4.2, with He's initialisation; the AUC paper's
    benchmarks put ELU in place of ReLU.

    >>> from damcli.deepauc.resnet20 import resnet20_cifar
    >>> sum(weights.numel() for weights in resnet20_cifar(num_classes=10).parameters())
    269722
    """

    def __init__(self, num_classes: int, in_chans: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act1 = activation()
        stages, inputs = [], WIDTHS[0]
        for width in WIDTHS:
            for _ in range(BLOCKS):
                stages.append(BasicBlock(inputs, width, activation))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.fc.bias)
        # What `Classifier` asks a timm model for; the mean and the spread of no data set in particular.
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "first_conv": "conv1", "classifier": "fc"}

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.act1(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits

    def get_classifier(self) -> nn.Module:
        """Return the last layer, as timm's models do."""
        return self.fc


@register_model
def resnet20_cifar(
    pretrained: bool = False, num_classes: int = 1, in_chans: int = 3, act_layer: LayerType = "relu", **timms: Any
) -> ResNet20:
    """Make a `ResNet20` as timm makes its models. Raises `RuntimeError` for `pretrained`: there are no weights."""
    if pretrained:
        raise RuntimeError("there are no pretrained weights of it")
    activation = get_act_layer(act_layer)
    assert activation is not None
    return ResNet20(num_classes, in_chans, activation)
