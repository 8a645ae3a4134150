"""Phantom chest radiographs, drawn from a seed: data for the demo and the tests, of nobody."""

from damcli.data.phantoms.folder import TREE, write_chexpert

__all__ = ["TREE", "write_chexpert"]
