"""The network on metadata: two hidden layers of 256 and 128 (ALGORITHM section 8)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

HIDDEN = (256, 128)


class MetadataNetwork(nn.Module):
    """Takes encoded metadata (N, `width`), float32, and returns a logit per finding, (N, K).

    Linear to 256, ReLU, linear to 128, ReLU, linear. All weights are drawn from `seed` alone; torch's global generator
    stays as it is.

    >>> MetadataNetwork(6, 2, seed=0)(torch.zeros(3, 6)).shape
    torch.Size([3, 2])
    """

    def __init__(self, width: int, num_findings: int, seed: int) -> None:
        super().__init__()
        sizes = (width, *HIDDEN, num_findings)
        if min(sizes) < 1:
            raise ValueError(f"width and num_findings must be at least 1, got {width} and {num_findings}")
        self.width, self.num_findings = width, num_findings
        # On "meta" a layer draws no weights, of which torch's global generator would know.
        layers = [nn.Linear(*pair, device="meta").to_empty(device="cpu") for pair in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            _draw(layer, generator)

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits (N, K)."""
        *hidden, last = self.layers
        for layer in hidden:
            rows = torch.relu(layer(rows))
        logits: Tensor = last(rows)
        return logits

    def reset_classifier(self, seed: int) -> None:
        """Draw the last layer anew: weights ± 1/√inputs, biases 0 (second stage of two, ALGORITHM section 5)."""
        _draw(self.layers[-1], torch.Generator().manual_seed(seed))


@torch.no_grad()
def _draw(layer: nn.Module, generator: torch.Generator) -> None:
    assert isinstance(layer, nn.Linear)
    bound = 1 / math.sqrt(layer.in_features)
    layer.weight.uniform_(-bound, bound, generator=generator)
    layer.bias.zero_()
