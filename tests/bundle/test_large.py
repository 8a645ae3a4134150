"""A model whose weights are beyond what one file can be: written, verified and run, in bounded memory."""

import json
import shutil
import subprocess
import sys

import pytest

from damcli.bundle.container import MAX_BYTES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it"),
]

# Layers of 100 MB; each keeps the size of what goes through it.
WIDTH, LAYERS = 5000, 22
BYTES = WIDTH * WIDTH * 4 * LAYERS

# getrusage would count what the process that started this one had.
PEAK = """
import re
from pathlib import Path

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
"""

MAKE = """
import json, sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from damcli.bundle import container, schema

width, layers = int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)

def weights(rows, columns):
    values = rng.standard_normal((rows, columns), np.float32)
    values /= np.float32(rows) ** 0.5
    return values

images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
expected = images.reshape(2, 256) / np.float32(255)
port, floats = helper.make_tensor_value_info, TensorProto.FLOAT
model = helper.make_model(
    helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["numbers"], to=floats),
            helper.make_node("Div", ["numbers", "white"], ["unit"]),
            helper.make_node("Reshape", ["unit", "flat"], ["x0"]),
        ],
        "large",
        [port("images", TensorProto.UINT8, ["N", 16, 16, 1])],
        [port("scores", floats, ["N", 2])],
        [
            numpy_helper.from_array(np.array([-1, 256]), "flat"),
            numpy_helper.from_array(np.array(255, np.float32), "white"),
        ],
    ),
    opset_imports=[helper.make_opsetid("", 20)],
    ir_version=10,
)
sides = [256, *[width] * (layers + 1), 2]
for number, (rows, columns) in enumerate(zip(sides, sides[1:])):
    matrix = weights(rows, columns)
    expected = np.tanh(expected @ matrix)
    tensor = model.graph.initializer.add(name=f"w{number}", data_type=1, dims=matrix.shape)
    tensor.raw_data = matrix.tobytes()
    model.graph.node.append(helper.make_node("MatMul", [f"x{number}", f"w{number}"], [f"y{number}"]))
    model.graph.node.append(helper.make_node("Tanh", [f"y{number}"], [f"x{number + 1}"]))
model.graph.node.append(helper.make_node("Sigmoid", [f"x{number + 1}"], ["scores"]))
info = schema.ModelInfo.model_validate_json(Path(sys.argv[4]).read_text())
built = peak()
info = container.write(Path(sys.argv[1]), model, info)
written = peak()
scores = 1 / (1 + np.exp(-expected))
print(json.dumps({"built": built, "written": written, "bytes": info.external.bytes, "scores": scores.tolist()}))
"""

READ = """
import json, sys
from pathlib import Path
import numpy as np
from damcli.bundle import container
from damcli.bundle.runtime import Model

opened = container.read(Path(sys.argv[1]))
read = peak()
model = Model.open(Path(sys.argv[1]), "cpu")
images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
scores = model.score(images).tolist()
run = peak()
print(json.dumps({"read": read, "run": run, "file": len(opened.data), "scores": scores}))
"""


def _run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", PEAK + code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout)


def test_a_model_beyond_two_gigabytes(said, tmp_path):
    assert BYTES > MAX_BYTES
    (tmp_path / "info.json").write_text(said().model_dump_json())
    path = tmp_path / "large.onnx"
    try:
        made = _run(MAKE, path, WIDTH, LAYERS, tmp_path / "info.json")
        assert made["bytes"] > BYTES
        # No copy of the whole: that of a weight or two.
        assert made["written"] < made["built"] + 4 * BYTES / LAYERS
        found = _run(READ, path)
    finally:
        shutil.rmtree(tmp_path)
    assert found["file"] < 100_000
    # The weights are hashed, not loaded.
    assert found["read"] < BYTES / 4
    assert found["scores"] == [pytest.approx(row, abs=1e-5) for row in made["scores"]]
