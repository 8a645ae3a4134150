"""ResNet20 as section 4.2 of its paper has it."""

import pytest
import timm
import torch
from torch import nn

from damcli.deepauc import network  # noqa: F401  (registers it)
from damcli.deepauc.network import Classifier
from damcli.errors import UsageError


@pytest.mark.parametrize("in_chans", [1, 3])
def test_it_has_twenty_layers_and_the_published_size(in_chans):
    net = timm.create_model("resnet20_cifar", num_classes=10, in_chans=in_chans)
    weighted = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 20
    assert [conv.out_channels for conv in weighted[:-1]] == [16] * 7 + [32] * 6 + [64] * 6
    # Counted by hand: convolutions, two numbers per channel of batch normalisation, the last layer.
    convolutions = 9 * (in_chans * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    assert sum(p.numel() for p in net.parameters()) == convolutions + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 650


def test_shortcuts_have_no_weights_and_pass_the_image_on():
    net = timm.create_model("resnet20_cifar", num_classes=2).eval()
    wider = net.blocks[3]
    assert wider.wider == 16
    with torch.no_grad():
        wider.conv2.weight.zero_()  # nothing but the shortcut is left
        x = torch.rand(2, 16, 32, 32)
        y = wider(x)
    assert y.shape == (2, 32, 16, 16)
    torch.testing.assert_close(y[:, 8:24], x[:, :, ::2, ::2])
    assert (y[:, :8] == 0).all()
    assert (y[:, 24:] == 0).all()


@pytest.mark.parametrize("size", [28, 32, 96])
def test_any_small_image_fits(size):
    net = timm.create_model("resnet20_cifar", num_classes=3, act_layer="elu").eval()
    assert net(torch.rand(2, 3, size, size)).shape == (2, 3)


def test_the_activation_is_each_networks_own():
    torch.manual_seed(0)
    elu = Classifier("resnet20_cifar", 1, activation="elu")
    torch.manual_seed(0)
    relu = Classifier("resnet20_cifar", 1)
    kinds = [{type(m) for m in net.modules()} & {nn.ELU, nn.ReLU} for net in (elu, relu)]
    assert kinds == [{nn.ELU}, {nn.ReLU}]
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(elu(x), relu(x))


def test_it_has_no_pretrained_weights():
    with pytest.raises(UsageError, match="no pretrained weights"):
        Classifier("resnet20_cifar", 1, pretrained=True)
