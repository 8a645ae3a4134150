"""Damage and random edits of a model file: refused with a `DataError`, or without any effect; nothing else happens."""

import copy
import json
import os

import numpy as np
import onnx
import pytest

from damcli.bundle import container
from damcli.errors import DamcliError, DataError

OUTSIDE = {"file": "m.onnx.aaaaaaaa.data", "sha256": "a" * 64, "bytes": 100}


def sealed(path, body):
    """Write a model with a seal that fits, as an attacker would."""
    # A new file: some file systems wait for the disk where one is written over.
    path.unlink(missing_ok=True)
    path.write_bytes(body + container.seal(body))
    return path


def unsealed(path):
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[1:]
    return model


def test_a_flipped_bit_anywhere_is_found(plain, tmp_path):
    whole = plain.read_bytes()
    path = tmp_path / "m.onnx"
    rng = np.random.default_rng(0)
    with path.open("wb", buffering=0) as file:
        file.write(whole)
        # Over the weights in steps.
        for place in [*range(0, len(whole), 97), *range(800), *range(len(whole) - 1800, len(whole))]:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << rng.integers(8)]))
            with pytest.raises(DataError):
                container.read(path)
            file.seek(place)
            file.write(whole[place : place + 1])
    assert container.read(path).data == whole


def test_a_file_cut_off_anywhere_is_refused(plain, tmp_path):
    whole = plain.read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    # Down from the end, over the seal, the metadata and the ports; then in steps over the weights.
    for length in [*range(len(whole) - 1, len(whole) - 1800, -1), *range(len(whole) - 1800, -1, -61)]:
        os.truncate(path, length)
        with pytest.raises(DataError):
            container.read(path)


def test_bytes_put_behind_are_found(plain, tmp_path):
    (tmp_path / "m.onnx").write_bytes(plain.read_bytes() + b"\x00")
    with pytest.raises(DataError):
        container.read(tmp_path / "m.onnx")
    more = onnx.ModelProto(producer_name="x").SerializeToString()
    (tmp_path / "m.onnx").write_bytes(plain.read_bytes() + more)
    with pytest.raises(DataError, match="damaged or changed"):
        container.read(tmp_path / "m.onnx")


def leaves(value, place=()):
    """Yield the places of all values inside a JSON document."""
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from leaves(one, (*place, key))


def test_metadata_with_any_value_exchanged_are_refused_or_sound(plain, tmp_path):
    model = unsealed(plain)
    document = json.loads(model.metadata_props[0].value)
    document["external"] = OUTSIDE
    document["cams"] = {"height": 1, "width": 1}
    strange = (None, True, -1, 2**70, 1e308, float("nan"), "", "\x00\ud800\x1b[2J", "../x", [], {}, [[]], {"": {}})
    refused = 0
    for place in [place for place in leaves(document) if place]:
        for value in strange:
            changed = copy.deepcopy(document)
            inside = changed
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            model.metadata_props[0].value = json.dumps(changed)
            try:
                container.read(sealed(tmp_path / "m.onnx", model.SerializeToString()))
            except DamcliError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("limit", [10_000, 10**9])
def test_random_edits_under_a_seal_that_fits_are_refused_or_sound(hand_made, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(container, "MAX_INLINE", limit)
    path = tmp_path / "m.onnx"
    info = container.write(path, *hand_made())
    assert bool(info.external) == (limit == 10_000)
    whole = unsealed(path).SerializeToString()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1000):
        body = bytearray(whole)
        for _ in range(rng.integers(1, 5)):
            at, length = int(rng.integers(len(body))), int(rng.integers(1, 40))
            kind = rng.integers(4)
            if kind == 0:
                body[at] = rng.integers(256)
            elif kind == 1:
                del body[at : at + length]
            elif kind == 2:
                body[at:at] = body[at : at + length]
            else:
                body[at:at] = rng.bytes(length)
        try:
            container.read(sealed(path, bytes(body)))
        except DataError:
            refused += 1
    assert refused > 300
