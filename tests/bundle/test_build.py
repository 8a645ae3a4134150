"""Export: one file, equal to PyTorch for any mixture of members, or nothing at all."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from damcli.bundle import build, container, graph, parity
from damcli.bundle.runtime import Model
from damcli.data import augment
from damcli.deepauc.network import Classifier
from damcli.errors import DataError, GateError, UsageError
from damcli.recipes import Augmentation


def by_torch(member, images):
    """The member's scores by the path that training takes."""
    with torch.no_grad():
        inputs = member.network.as_input(torch.from_numpy(images[..., 0] if images.shape[-1] == 1 else images))
        return member.network(inputs).sigmoid().numpy()


@pytest.mark.parametrize("scans", [1, 3, 17])
def test_one_member_equals_pytorch_at_any_batch(model_file, make_member, draw, scans):
    member, images = make_member(["Edema", "Fracture"]), draw(scans, seed=scans)
    model = Model.open(model_file, "cpu")
    np.testing.assert_allclose(model.score(images), by_torch(member, images), atol=1e-6)
    np.testing.assert_array_equal(model.score(images[..., 0]), model.score(images))


@pytest.mark.parametrize(
    ("backbone", "options", "channels"),
    [("resnet20_cifar", {"activation": "elu"}, 3), ("test_resnet", {"in_chans": 1}, 1)],
)
def test_other_channels_and_activations_equal_pytorch(make_member, draw, tmp_path, backbone, options, channels):
    member = make_member(["Edema"], backbone, channels=channels, **options)
    images = draw(4, channels=channels)
    build.export([member], tmp_path / "toy.onnx", images)
    scores = Model.open(tmp_path / "toy.onnx", "cpu").score(images)
    np.testing.assert_allclose(scores, by_torch(member, images), atol=1e-5)


def test_an_ensemble_of_other_backbones_sizes_and_findings_is_the_mean_of_those_that_have_a_finding(
    make_member, draw, tmp_path
):
    large = make_member(["Edema", "Fracture"], "test_resnet", size=60, seed=1)
    small = make_member(["Pneumonia", "Edema"], "test_efficientnet", size=36, seed=2)
    images, path = draw(6, size=60), tmp_path / "ensemble.onnx"
    truth = np.array([[0, 1, np.nan]] * 3 + [[1, 1, 0]] * 3)
    found = build.export([large, small], path, images, truth).parity
    model = Model.open(path, "cpu")
    assert model.info.findings == ("Edema", "Fracture", "Pneumonia")
    assert model.info.contract.size == 60
    assert [member.size for member in model.info.members] == [60, 36]

    a = by_torch(large, images)
    lower = [cv2.resize(i.astype(np.float32), (36, 36), interpolation=cv2.INTER_AREA) for i in images[..., 0]]
    with torch.no_grad():
        b = small.network(torch.from_numpy(np.stack(lower))[:, None] / 255).sigmoid().numpy()
    expected = np.stack([(a[:, 0] + b[:, 1]) / 2, a[:, 1], b[:, 0]], 1)
    np.testing.assert_allclose(model.score(images), expected, atol=1e-5)
    assert found.scans == 6
    assert found.max_difference < 1e-5
    assert found.auroc_difference == 0

    card = (tmp_path / "ensemble.onnx.md").read_text(encoding="utf-8")
    for word in ("Edema", "Pneumonia", "run-1", "run-2", "test_efficientnet", "uint8 (N, 60, 60, 1)", "none yet"):
        assert word in card


def test_three_backbones_of_two_sizes_are_the_weighted_mean_of_each_by_pytorch(make_member, draw, tmp_path):
    """A convolutional network, one of tokens whose size is fixed, and one that ends in a norm."""
    weights = ({"Edema": 2.0, "Mass": 0.5}, {"Edema": 0.25}, {"Mass": 0.0})
    members = [
        replace(make_member(findings, backbone, size=size, seed=number), weights=own)
        for number, (findings, backbone, size, own) in enumerate(
            [
                (["Edema", "Mass"], "test_efficientnet", 96, weights[0]),
                (["Edema"], "test_vit", 160, weights[1]),
                (["Mass", "Edema"], "test_convnext", 96, weights[2]),
            ]
        )
    ]
    images, path = np.pad(draw(5, size=144), ((0, 0), (8, 8), (8, 8), (0, 0))), tmp_path / "three.onnx"
    info = build.export(members, path, images)
    lower = [cv2.resize(scan.astype(np.float32), (96, 96), interpolation=cv2.INTER_AREA) for scan in images[..., 0]]
    lower = torch.from_numpy(np.stack(lower))[:, None] / 255
    with torch.no_grad():
        a, c = (members[k].network(lower).sigmoid().numpy() for k in (0, 2))
    b = by_torch(members[1], images)
    expected = np.stack([(2 * a[:, 0] + 0.25 * b[:, 0] + c[:, 1]) / 3.25, a[:, 1]], 1)
    model = Model.open(path, "cpu")
    np.testing.assert_allclose(model.score(images), expected, atol=1e-5)
    np.testing.assert_allclose(model.score(images[3:4]), expected[3:4], atol=1e-5)
    assert tuple(member.weights for member in info.members) == weights


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (({"Mass": 1.0}, {}), "a weight is given for 'Mass', which run-0 does not have"),
        (({"Edema": -1.0}, {}), "a number of at least 0, got -1 for Edema"),
        (({"Edema": float("nan")}, {}), "a number of at least 0, got nan"),
        (({"Edema": 0.0}, {"Edema": 0.0}), "all that have the finding 'Edema' have the weight 0"),
    ],
)
def test_weights_that_make_no_mean_are_refused(make_member, given, why):
    members = [replace(make_member(["Edema"], seed=seed), weights=own) for seed, own in enumerate(given)]
    with pytest.raises(UsageError, match=why):
        build.check(members)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size", "maps"),
    [
        ("densenet121", 320, True),
        ("densenet201", 224, True),
        ("inception_resnet_v2", 299, True),
        ("efficientnet_b0", 224, True),
        ("efficientnet_b5", 256, True),
        ("resnet18", 224, True),
        ("resnet50", 224, True),
        ("convnext_tiny", 224, False),
        ("vit_small_patch16_224", 224, False),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_real_backbones_equal_pytorch(make_member, tmp_path, capsys, backbone, size, maps, precision):
    """Random weights, as a network begins; untrained running statistics keep its values in range."""
    torch.manual_seed(0)
    member = make_member(["Edema", "Fracture"])
    network = Classifier(backbone, 2).eval()
    member = replace(member, network=network, contract=member.contract.model_copy(update={"size": size}))
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 1), dtype=np.uint8)
    path = tmp_path / "real.onnx"
    info = build.export([member], path, images, precision=precision, maps=maps, force=precision == "fp16")
    np.testing.assert_allclose(Model.open(path, "cpu").score(images[1:2]), by_torch(member, images[1:2]), atol=2e-3)
    with capsys.disabled():
        print(f"\n{backbone} {size} {precision}: {info.parity.max_difference:.1e}, {path.stat().st_size / 1e6:.1f} MB")
    assert info.parity.max_difference < (1e-5 if precision == "fp32" else 2e-3)


def test_colour_scans_keep_their_channels_apart(make_member, draw, tmp_path, capfd):
    member, images = make_member(["Metastasis"], channels=3), draw(4, channels=3)
    build.export([member], tmp_path / "colour.onnx", images)
    assert capfd.readouterr().out == "", "the exporter's words belong to stderr"
    scores = Model.open(tmp_path / "colour.onnx", "cpu").score(images)
    np.testing.assert_allclose(scores, by_torch(member, images), atol=1e-6)
    assert np.abs(scores - by_torch(member, images[..., ::-1].copy())).max() > 1e-4


def test_views_are_scored_inside_each_member_by_its_own_maps(make_member, draw, tmp_path):
    strengths = Augmentation(rotate=20, shear=15, flip=True)
    large = make_member(["Edema", "Fracture"], size=48, channels=3, seed=1)
    large = replace(large, views=augment.maps(strengths, torch.arange(3)))
    small = make_member(["Edema"], size=36, channels=3, seed=2)
    small = replace(small, views=augment.maps(strengths, torch.arange(10, 11)))
    images, path = draw(5, channels=3), tmp_path / "views.onnx"
    found = build.export([large, small], path, images).parity
    assert found.max_difference < 1e-5

    def mean(member, pixels):
        """Scan by scan and view by view, from torch's own functions."""
        scores = np.zeros((len(pixels), len(member.findings)))
        for row, scan in zip(scores, pixels, strict=True):
            seen = [scan[None]]
            for view in member.views:
                grid = torch.nn.functional.affine_grid(view[None], [1, *scan.shape], align_corners=False)
                seen.append(torch.nn.functional.grid_sample(scan[None], grid, align_corners=False))
            with torch.no_grad():
                row[:] = np.mean([member.network(one).sigmoid().numpy()[0] for one in seen], axis=0)
        return scores

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    lower = [cv2.resize(scan.astype(np.float32) / 255, (36, 36), interpolation=cv2.INTER_AREA) for scan in images]
    lower = torch.from_numpy(np.stack(lower)).permute(0, 3, 1, 2)
    a, b = mean(large, pixels), mean(small, lower)
    expected = np.stack([(a[:, 0] + b[:, 0]) / 2, a[:, 1]], 1)
    model = Model.open(path, "cpu")
    np.testing.assert_allclose(model.score(images), expected, atol=1e-5)
    np.testing.assert_allclose(model.score(images[3:4]), expected[3:4], atol=1e-5)
    assert np.abs(by_torch(large, images) - a).max() > 1e-3, "the views make a difference"
    assert [member.views for member in model.info.members] == [4, 2]
    assert model.info.parity.openvino is None, "OpenVINO has no Scan over constants"
    card = (tmp_path / "views.onnx.md").read_text(encoding="utf-8")
    assert "the mean over its views" in card
    assert "| test_resnet | 48 | 4 |" in card


@pytest.mark.parametrize(("size", "smaller"), [(12, 4), (320, 224), (7, 5), (5, 5), (9, 1)])
def test_area_matrix_is_the_brute_force_mean(size, smaller):
    fine = np.kron(np.eye(size), np.ones(smaller))
    expected = fine.reshape(size, smaller, size).mean(2).T
    np.testing.assert_allclose(graph.area_matrix(size, smaller), expected, atol=1e-7)


def test_parity_above_the_tolerance_is_refused_and_nothing_is_written(make_member, draw, tmp_path, monkeypatch):
    assemble = build.graph.assemble

    def wrong(*arguments):
        model = assemble(*arguments)
        [white] = [tensor for tensor in model.graph.initializer if tensor.name == "white"]
        white.CopyFrom(numpy_helper.from_array(np.array(200, np.float32), "white"))
        return model

    monkeypatch.setattr(build.graph, "assemble", wrong)
    with pytest.raises(GateError, match=r"differ from PyTorch's by 0\.\d+, more than 0\.0001: nothing was written"):
        build.export([make_member(["Edema"])], tmp_path / "new" / "m.onnx", draw(4))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_gives_nan_is_refused(make_member, draw, tmp_path):
    member = make_member(["Edema"])
    member.network.backbone.get_classifier().bias.data.fill_(float("nan"))
    with pytest.raises(GateError, match="differ from PyTorch's by nan"):
        build.export([member], tmp_path / "m.onnx", draw(2))


def test_the_file_holds_no_path_of_this_machine(model_file):
    content = model_file.read_bytes()
    for trace in (b"site-packages", b"stack_trace", str(Path(build.__file__).parents[2]).encode()):
        assert trace not in content


def test_metadata_say_where_the_model_comes_from(model_file):
    model = onnx.load(model_file)
    info = json.loads({p.key: p.value for p in model.metadata_props}["damcli"])
    assert info["findings"] == ["Edema", "Fracture"]
    contract = {"version": 1, "size": 48, "channels": 1, "fit": "pad", "frame": None, "film": "grey"}
    assert info["contract"] == contract
    [member] = info["members"]
    assert (member["run"], member["backbone"], member["dataset"]) == ("run-0", "test_resnet", "d" * 64)
    assert info["parity"]["scans"] == 5


def test_members_that_do_not_fit_together_are_refused(make_member, draw, tmp_path):
    with pytest.raises(UsageError, match="decode scans differently"):
        build.export([make_member(["A"]), make_member(["A"], channels=3)], tmp_path / "m.onnx", draw(2))


@pytest.mark.parametrize("findings", [["status"], ["Path"], ["A", "A"], [""]])
def test_findings_that_cannot_be_columns_are_refused(make_member, draw, tmp_path, findings):
    with pytest.raises(DataError, match="finding"):
        build.export([make_member(findings)], tmp_path / "m.onnx", draw(2))


def test_weights_too_large_for_one_file_lie_beside_it_and_are_compared_as_they_lie_there(
    make_member, draw, tmp_path, monkeypatch
):
    monkeypatch.setattr(container, "MAX_INLINE", 100_000)
    members, images = [make_member(["Edema"], seed=seed) for seed in (0, 1)], draw(3)
    info = build.export(members, tmp_path / "large.onnx", images)
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {"large.onnx", "large.onnx.md", info.external.file}
    assert (tmp_path / info.external.file).stat().st_size > 10 * (tmp_path / "large.onnx").stat().st_size
    expected = np.mean([by_torch(member, images) for member in members], axis=0)
    np.testing.assert_allclose(Model.open(tmp_path / "large.onnx", "cpu").score(images), expected, atol=1e-6)
    for name in names:
        (tmp_path / name).unlink()
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    with pytest.raises(GateError, match="nothing was written"):
        build.export(members, tmp_path / "large.onnx", images)
    assert list(tmp_path.iterdir()) == []
