"""Deep AUC Maximization: losses, optimizer, sampler (ICCV 2021). The network is in `damcli.deepauc.network`."""

from damcli.deepauc.losses import AUCMarginLoss, AUCSquareLoss, CrossEntropyLoss, FocalLoss
from damcli.deepauc.pesg import PESG
from damcli.deepauc.sampler import BalancedSampler, UniformSampler

__all__ = [
    "PESG",
    "AUCMarginLoss",
    "AUCSquareLoss",
    "BalancedSampler",
    "CrossEntropyLoss",
    "FocalLoss",
    "UniformSampler",
]
