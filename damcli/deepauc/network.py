"""The network: any timm backbone with one logit per finding, channels and normalisation inside."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from damcli.errors import DataError, MachineError, UsageError

SHOWN = 5  # of the keys that do not fit


class Classifier(nn.Module):
    """A timm backbone that takes images in [0, 1] and returns a logit per finding.

    `backbone` is a timm model's name. `weights` is a file of timm weights (`.safetensors`, or a state dict in
    `.pth`, `.pt`, `.bin`; never unpickled beyond tensors); its classifier is ignored. `pretrained` lets timm
    download weights. With neither, the weights are random by torch's global generator. The normalisation is that
    of timm's configuration of the backbone, held in the buffers `mean` and `std` of shape (3, 1, 1).

    Raises `UsageError` for an unknown backbone or a file that is missing or of another type, `DataError` for one
    that is broken or does not fit, `MachineError` where timm cannot download.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str, num_findings: int, weights: str | Path | None = None, pretrained: bool = False
    ) -> None:
        super().__init__()
        if num_findings < 1:
            raise ValueError(f"num_findings must be at least 1, got {num_findings}")
        if weights is not None and pretrained:
            raise UsageError("weights come from a file or from timm, not from both", fix="drop one of the two")
        self.backbone_name = backbone
        self.num_findings = num_findings
        self.backbone = _create(backbone, num_findings, pretrained)
        self.classifier_name = _classifier_name(self.backbone, backbone)
        config = self.backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1))
        if weights is not None:
            self._load(Path(weights))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) for float images (N, 1 or 3, H, W) in [0, 1]."""
        logits: Tensor = self.backbone((images.expand(-1, 3, -1, -1) - self.mean) / self.std)
        return logits

    @staticmethod
    def as_input(images: Tensor) -> Tensor:
        """Return uint8 images (N, H, W) or (N, H, W, 3) as float32 (N, C, H, W) in [0, 1].

        >>> Classifier.as_input(torch.full((2, 4, 4), 255, dtype=torch.uint8)).shape
        torch.Size([2, 1, 4, 4])
        """
        channels_first = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        return channels_first.to(torch.float32) / 255

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

    def _load(self, path: Path) -> None:
        own = self.backbone.state_dict()
        head = self.classifier_name + "."
        given = {key: value for key, value in _read(path).items() if not key.startswith(head)}
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


def _create(backbone: str, num_findings: int, pretrained: bool) -> Any:
    import timm

    # Also keeps out timm's hf-hub: and local-dir: names, which would reach for the network unasked.
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3, cutoff=0.5)
        fix = f"did you mean {', '.join(near)}?" if near else None
        raise UsageError(f"timm knows no backbone {backbone!r}", fix=fix or "see timm.list_models() for all of them")
    try:
        return timm.create_model(backbone, num_classes=num_findings, in_chans=3, pretrained=pretrained)
    except RuntimeError as error:
        raise UsageError(f"timm could not make {backbone!r}: {error}", fix="drop the tag, or --pretrained") from error
    except Exception as error:  # the hub's clients raise errors of several libraries when they find no network
        if not pretrained:
            raise
        raise MachineError(
            f"the pretrained weights of {backbone!r} could not be downloaded",
            fix="check the network, or give the weights as a file with --weights",
        ) from error


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
