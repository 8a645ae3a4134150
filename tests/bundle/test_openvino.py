"""A model runs on OpenVINO only where export measured that its AUROC stays."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from damcli.bundle import container, openvino
from damcli.bundle.batching import best_batch
from damcli.bundle.runtime import Model
from damcli.bundle.schema import INPUT, OUTPUT, OpenVINOParity
from damcli.errors import MachineError
from damcli.metrics import auroc

# Not by `importorskip`, which would import it with its telemetry.
pytestmark = pytest.mark.skipif(not openvino.installed(), reason="openvino is not installed")


@pytest.fixture
def measured(model_file, edited, tmp_path):
    """Returns `make(found)`: the model with this `Parity.openvino`."""

    def make(found):
        info = container.read(model_file).info
        info = info.model_copy(update={"parity": info.parity.model_copy(update={"openvino": found})})

        def say(model):
            model.metadata_props[0].value = info.model_dump_json()

        return edited(model_file, tmp_path / "measured.onnx", say)

    return make


def found(precision="fp32", shift=0.0):
    return OpenVINOParity(version="1", precision=precision, max_difference=0.0, auroc_difference=shift)


def test_in_fp32_its_scores_are_those_of_onnx_runtime(measured, model_file, draw):
    model = Model.open(measured(found()), "openvino", threads=1, streams=2)
    assert (model.provider, model.devices, model.fell_back) == ("OpenVINO fp32", 1, False)
    assert "as asked for" in model.provider_note
    assert best_batch(model, 2) == 8
    np.testing.assert_allclose(model.score(draw(9)), Model.open(model_file, "cpu").score(draw(9)), atol=1e-5)


def test_calls_at_once_do_not_mix_their_scans(measured, draw):
    model = Model.open(measured(found()), "openvino", threads=1, streams=2)
    batches = [draw(3, seed=seed) for seed in range(40)]
    alone = [model.score(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(model.score, batches))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "were not compared"),
        (found(shift=None), "no AUROC was defined"),
        (found(shift=0.001), "moved by 0.001"),
        (found(shift=0.2), r"moved by 0\.2"),
    ],
)
def test_what_was_not_measured_or_moves_is_refused(measured, value, reason):
    path = measured(value)
    with pytest.raises(MachineError, match=reason) as caught:
        Model.open(path, "openvino")
    assert caught.value.exit_code == 5
    assert "openvino" not in Model.open(path).provider_note


def test_it_is_hinted_at_but_never_taken_unasked(measured):
    path = measured(found(shift=0.0005))
    assert Model.open(path).provider_note.endswith("; --device openvino may be faster")
    assert "openvino" not in Model.open(path, "cpu").provider_note


def test_without_the_package_it_is_said_what_to_install(measured, monkeypatch):
    path = measured(found())
    monkeypatch.setattr(openvino, "installed", lambda: False)
    with pytest.raises(MachineError, match="not installed") as caught:
        Model.open(path, "openvino")
    assert "damcli[openvino]" in caught.value.fix


def test_parity_is_what_its_scores_are_beside_those_given(model_file, draw):
    data, images = model_file.read_bytes(), draw(19)
    scores = np.random.default_rng(0).random((19, 2)).astype(np.float32)
    truth = (scores > 0.5).astype(float)
    truth[:, 1] = np.nan
    got = openvino.OpenVINO(data, openvino.precision()).run({INPUT: images}, [OUTPUT])[0]
    measured = openvino.parity(data, images, truth, scores)
    assert measured.precision == openvino.precision()
    assert measured.max_difference == pytest.approx(np.abs(got - scores).max(), abs=2e-3)
    shift = 1 - auroc(truth[:, 0], got[:, 0])
    assert measured.auroc_difference == pytest.approx(shift, abs=0.05)
    assert shift > 0.2
    assert openvino.parity(data, images, None, scores).auroc_difference is None


def test_nothing_is_sent_to_anybody(tmp_path):
    code = """
import sys
def refuse(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.")):
        print(event, arguments)
sys.addaudithook(refuse)
from damcli.bundle import openvino
openvino.precision()
import threading
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(10)
"""
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(openvino.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_graph_that_it_does_not_take_is_said(model_file, draw):
    with pytest.raises(MachineError, match="could not be run"):
        openvino.parity(b"no graph", draw(2), None, np.zeros((2, 2), np.float32))
