"""torch.compile, torch.export and ONNX take KAN layers; run without shape checks, which graphs do not hold."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import copy, io, json, warnings
import torch
from torch import nn
from kunet.kan import KANConv2d, KANLinear, grids
from kunet.kan.lowrank import LowRankKANLinear
warnings.filterwarnings("ignore")
torch.manual_seed(0)

def adapted():
    layer = KANLinear(6, 5, 5)
    grids.adapt(layer, torch.randn(200, 6))
    return layer

x, image = torch.randn(9, 6), torch.randn(2, 4, 9, 8)
CASES = {
    "linear": (KANLinear(6, 5, scaler=True, bias=True), x),
    "linear outside": (KANLinear(6, 5, outside="linear", base=None), x),
    "adapted": (adapted(), x),
    "chebyshev": (KANLinear(6, 5, basis="chebyshev"), x),
    "low rank": (LowRankKANLinear(6, 5, 2), x),
    "convolution": (KANConv2d(4, 6, 3, padding=1, stride=2, groups=2), image),
    "bases padded": (KANConv2d(4, 6, 3, padding=1, padding_mode="bases"), image),
}
far = {}
for name, (layer, value) in CASES.items():
    exact = layer(value)
    backend = "inductor" if name in ("linear", "convolution") else "aot_eager"
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend=backend)
    y = compiled(value)
    y.square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    exact.square().sum().backward()
    errors = [float((a - b.grad).abs().max()) for a, b in zip(gradients, layer.parameters())]
    far["compile " + name] = max(float((y - exact).abs().max()), *errors)
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(layer, (value,), dynamic_shapes=({0: batch},))
        more = torch.cat([value, value, value])
        far["export " + name] = float((program.module()(more) - layer(more)).abs().max())
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
        import onnxruntime
        session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString())
        found = session.run(None, {session.get_inputs()[0].name: more.numpy()})[0]
        far["onnx " + name] = float((torch.from_numpy(found) - layer(more)).abs().max())
print("RESULT" + json.dumps(far))
"""


@pytest.fixture(scope="module")
def distances():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.mark.parametrize("way", ["compile", "export", "onnx"])
def test_same_numbers(distances, way):
    found = {name: value for name, value in distances.items() if name.startswith(way)}
    assert len(found) == 7
    assert all(value < 1e-4 for value in found.values()), found
