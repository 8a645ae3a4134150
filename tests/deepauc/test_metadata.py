"""The network on metadata: its layers, and weights that the seed alone decides."""

import pytest
import torch

from damcli.deepauc.metadata import MetadataNetwork


def test_it_is_two_hidden_layers_of_256_and_128_with_relu():
    network = MetadataNetwork(7, 3, seed=1)
    shapes = [tuple(layer.weight.shape) for layer in network.layers]
    assert shapes == [(256, 7), (128, 256), (3, 128)]
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    one, two, three = network.layers
    hidden = (rows @ one.weight.T + one.bias).clamp(min=0)
    hidden = (hidden @ two.weight.T + two.bias).clamp(min=0)
    torch.testing.assert_close(network(rows), hidden @ three.weight.T + three.bias)


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = MetadataNetwork(4, 1, seed=5).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    again, other = MetadataNetwork(4, 1, seed=5).state_dict(), MetadataNetwork(4, 1, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])
    assert first["layers.0.weight"].abs().max() <= 0.5


def test_only_the_last_layer_is_drawn_anew():
    network = MetadataNetwork(4, 2, seed=0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.reset_classifier(9)
    changed = [key for key, value in network.state_dict().items() if not torch.equal(before[key], value)]
    assert changed == ["layers.2.weight"]


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_nothing_to_take_or_to_give_is_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        MetadataNetwork(*sizes, seed=0)
