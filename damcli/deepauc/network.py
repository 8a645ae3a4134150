"""The network: any timm backbone with one logit per finding, channels and normalisation inside."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import torch
from timm.layers.activations import HardSigmoid, Sigmoid
from timm.layers.create_act import get_act_layer
from timm.models import adapt_input_conv
from torch import Tensor, nn

from damcli.deepauc import resnet20  # noqa: F401  (makes its name known to timm)
from damcli.errors import DataError, MachineError, UsageError

PREFIX = "backbone."  # of the backbone's weights in a classifier
SHOWN = 5  # of the keys that do not fit
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
GATES = {nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.MultiheadAttention, Sigmoid, HardSigmoid}  # of attention


class Classifier(nn.Module):
    """A timm backbone that takes images in [0, 1] and returns a logit per finding.

    `backbone` is a timm model's name, or `resnet20_cifar`. `in_chans` is 3 or 1: into three channels a grey image
    goes three times. `activation` (timm's name for it, such as `elu`) takes the place of all of the backbone's own, in
    this network alone; the gates of its attention stay. `weights` is a file of timm weights, or of a
    classifier's own (`.safetensors`, or a state dict in `.pth`, `.pt`, `.bin`; never unpickled beyond tensors); its
    last layer is ignored, and a first layer for colour is summed up for grey. `pretrained` lets timm download weights.
    With neither, the weights are random by torch's global generator. The normalisation is that of timm's configuration
    of the backbone (its mean over the channels where there is one), held in the buffers `mean` and `std` of shape
    (in_chans, 1, 1).

    Raises `UsageError` for an unknown backbone or activation, a backbone that cannot take it, or a file that is
    missing or of another type, `DataError` for one that is broken or does not fit, `MachineError` where timm cannot
    download.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        num_findings: int,
        weights: str | Path | None = None,
        pretrained: bool = False,
        in_chans: int = 3,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        if num_findings < 1:
            raise ValueError(f"num_findings must be at least 1, got {num_findings}")
        if in_chans not in (1, 3):
            raise ValueError(f"in_chans must be 1 or 3, got {in_chans}")
        if weights is not None and pretrained:
            raise UsageError("weights come from a file or from timm, not from both", fix="drop one of the two")
        self.backbone_name, self.num_findings = backbone, num_findings
        self.in_chans, self.activation = in_chans, activation
        self.backbone = _create(backbone, num_findings, pretrained, in_chans, activation)
        self.classifier_name = _classifier_name(self.backbone, backbone)
        config = self.backbone.pretrained_cfg
        for name in ("mean", "std"):
            channels = torch.tensor(config[name])
            self.register_buffer(name, (channels if in_chans == 3 else channels.mean(0, keepdim=True)).view(-1, 1, 1))
        if weights is not None:
            self._load(Path(weights))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) for float images in [0, 1], grey (N, 1, H, W), or colour for three channels."""
        logits: Tensor = self.backbone(self.normalised(images))
        return logits

    def normalised(self, images: Tensor) -> Tensor:
        """Return what the backbone takes of images as in `forward`: (x - mean) / std, grey in three channels."""
        scale = 1 / self.std
        # In one pass over the pixels.
        return torch.addcmul(-self.mean * scale, images, scale)

    @staticmethod
    def as_input(images: Tensor) -> Tensor:
        """Return uint8 images (N, H, W) or (N, H, W, 3) as float32 (N, C, H, W) in [0, 1].

        >>> Classifier.as_input(torch.full((2, 4, 4), 255, dtype=torch.uint8)).shape
        torch.Size([2, 1, 4, 4])
        """
        channels_first = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        return torch.div(channels_first, 255)

    def reset_classifier(self, seed: int) -> None:
        """Draw the last layer anew, from a generator of its own: weights ± 1/√inputs, biases 0.

        The backbone and torch's global generator stay as they are. Second stage of two (ALGORITHM section 5).
        """
        layer = self.backbone.get_submodule(self.classifier_name)
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        bound = 1 / math.sqrt(weight[0].numel())
        drawn = torch.empty(weight.shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            weight.copy_(drawn)
            if isinstance(bias, Tensor):
                bias.zero_()

    def with_findings(self, num_findings: int) -> Classifier:
        """Return a network of the same weights on the same device for another number of findings.

        Its last layer is random, by torch's global generator: see `reset_classifier`.
        """
        twin = Classifier(self.backbone_name, num_findings, in_chans=self.in_chans, activation=self.activation)
        head = f"backbone.{self.classifier_name}."
        kept = {key: value for key, value in self.state_dict().items() if not key.startswith(head)}
        twin.load_state_dict(kept, strict=False)
        return twin.to(self.mean.device)

    def _load(self, path: Path) -> None:
        own = self.backbone.state_dict()
        head = self.classifier_name + "."
        read = _read(path)
        if PREFIX + head + "weight" in read:  # the weights of a run of ours
            read = {key.removeprefix(PREFIX): value for key, value in read.items() if key.startswith(PREFIX)}
        given = {key: value for key, value in read.items() if not key.startswith(head)}
        first = f"{self.backbone.pretrained_cfg.get('first_conv')}.weight"
        if self.in_chans == 1 and first in given and given[first].ndim == 4:
            given[first] = adapt_input_conv(1, given[first])
        wanted = {key for key in own if not key.startswith(head)}
        # Weights older than torch 0.4.1 lack this counter, and nothing reads it at a fixed momentum.
        missing = sorted(k for k in wanted - given.keys() if not k.endswith("num_batches_tracked"))
        unexpected = sorted(given.keys() - wanted)
        shapes = [
            f"{key} is {tuple(given[key].shape)} in the file, {tuple(own[key].shape)} in the network"
            for key in sorted(wanted & given.keys())
            if given[key].shape != own[key].shape
        ]
        faults = [
            f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}{', …' if len(keys) > SHOWN else ''}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        if faults:
            raise DataError(
                f"the weights do not fit {self.backbone_name}: {'; '.join(faults)}",
                where=path,
                fix="give the backbone that the weights were made for, with timm's names for the keys",
            )
        self.backbone.load_state_dict(given, strict=False)


def _create(backbone: str, num_findings: int, pretrained: bool, in_chans: int, activation: str | None) -> Any:
    import timm

    # Also keeps out timm's hf-hub: and local-dir: names, which would reach for the network unasked.
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3, cutoff=0.5)
        fix = f"did you mean {', '.join(near)}?" if near else None
        raise UsageError(f"timm knows no backbone {backbone!r}", fix=fix or "see timm.list_models() for all of them")
    layer = _activation(activation) if activation else None
    options: dict[str, Any] = {
        "num_classes": num_findings,
        "in_chans": in_chans,
        **({"act_layer": layer} if layer else {}),
    }
    try:
        network = timm.create_model(backbone, pretrained=pretrained, **options)
    except TypeError as error:
        if layer and "act_layer" in str(error):
            raise _no_choice(backbone, activation) from error
        raise
    except RuntimeError as error:
        raise UsageError(f"timm could not make {backbone!r}: {error}", fix="drop the tag, or --pretrained") from error
    except Exception as error:  # the hub's clients raise errors of several libraries when they find no network
        if not pretrained:
            raise
        raise MachineError(
            f"the pretrained weights of {backbone!r} could not be downloaded",
            fix="check the network, or give the weights as a file with --weights",
        ) from error
    if layer and not _replaced(network, layer):
        raise _no_choice(backbone, activation)
    return network


def _activation(name: str) -> type[nn.Module]:
    try:
        layer = get_act_layer(name)
    except KeyError as error:
        raise UsageError(
            f"timm knows no activation {name!r}", where="activation", fix="take elu, relu, silu, gelu, …"
        ) from error
    assert isinstance(layer, type)
    return layer


def _replaced(network: nn.Module, layer: type[nn.Module]) -> bool:
    """Whether `layer` is the only activation of a network, gates aside: timm replaces some of a backbone's in part."""
    kinds = {type(module) for module in network.modules()}
    return layer in kinds and not any(kind.__module__.startswith(ACTIVATIONS) for kind in kinds - GATES - {layer})


def _no_choice(backbone: str, activation: str | None) -> UsageError:
    return UsageError(
        f"{backbone!r} does not let its activation be chosen, and {activation!r} was asked for",
        where="activation",
        fix="leave it unset, or choose another backbone",
    )


def _classifier_name(network: Any, backbone: str) -> str:
    layer = network.get_classifier()
    name = next((name for name, module in network.named_modules() if module is layer), None)
    if name is None or not isinstance(getattr(layer, "weight", None), Tensor):
        raise UsageError(f"{backbone!r} has no single last layer to train", fix="choose another backbone")
    return name


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError("there is no such file of weights", where=path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise DataError(f"this is no valid safetensors file: {error}", where=path) from error
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise UsageError(
            f"weights cannot be read from a {path.suffix or 'nameless kind of'} file",
            where=path,
            fix="give a .safetensors file, or a state dict as .pth, .pt or .bin",
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip, pickle and storage readers meet
        raise DataError(
            "this file cannot be read as tensors alone, and code in it is never run",
            where=path,
            fix="save the network's state_dict() alone, best as .safetensors",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise DataError("this file holds no state dict", where=path, fix="save the network's state_dict() alone")
    return {str(key): value for key, value in loaded.items()}
