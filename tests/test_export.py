"""Networks as files for other programs, run by those programs; networks whose KAN layers are tables."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_models import SMALL
from torch import nn

from kunet import metrics
from kunet.data import bundled
from kunet.export import AnySize
from kunet.images import to_tensor, unit
from kunet.kan import KANLinear
from kunet.kan.tables import TableKANLinear, with_tables
from kunet.models import make
from kunet.runs import load_weights, save_weights
from kunet.weights import DEFAULT, find

# In a process without shape checks, which graphs do not hold, and without this package where the file is used.
WRITE = """
import sys
from kunet.cli import main
for path in sys.argv[1:]:
    main(["export", "-o", path])
"""
RUN = """
import json, sys
import numpy, onnxruntime, torch
onnx, pt2, images = sys.argv[1:]
session = onnxruntime.InferenceSession(onnx)
extra = {"kunet.json": ""}
network = torch.export.load(pt2, extra_files=extra).module()
results, level = {}, numpy.float32([30 / 255])
for name, noisy in numpy.load(images).items():
    results["onnx " + name] = session.run(["restored"], {"noisy": noisy, "level": level})[0]
    if min(noisy.shape[2:]) >= 17:
        results["pt2 " + name] = network(torch.from_numpy(noisy), torch.from_numpy(level)).numpy()
numpy.savez(images, **results)
shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
facts = [session.get_modelmeta().custom_metadata_map, json.loads(extra["kunet.json"])]
print(json.dumps([shapes, facts, "kunet" in sys.modules]))
"""
SIZES = [(1, 1), (2, 5), (16, 16), (17, 17), (48, 64), (128, 128), (97, 301), (256, 144)]


@pytest.fixture(scope="module")
def tiny():
    return load_weights(find(DEFAULT))[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Both files of the shipped weights, and what the command said."""
    folder = tmp_path_factory.mktemp("exported")
    paths = [folder / "tiny.onnx", folder / "tiny.pt2"]
    words = [sys.executable, "-c", WRITE, *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    assert sorted(folder.iterdir()) == sorted(paths)
    return paths, done.stdout


def test_files_of_the_shipped_weights(exported, tiny, tmp_path):
    """Images of any size, as onnxruntime and torch alone compute them; what the files say of themselves."""
    paths, said = exported
    assert said.count("MB, at most ") == 2
    assert all(path.stat().st_size < 8_000_000 for path in paths)
    noisy = {f"{h} {w}": torch.rand(1, 3, h, w) for h, w in SIZES}
    np.savez(tmp_path / "images.npz", **{name: x.numpy() for name, x in noisy.items()})
    words = [sys.executable, "-c", RUN, *map(str, paths), str(tmp_path / "images.npz")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = dict(np.load(tmp_path / "images.npz"))
    assert len(results) == 2 * len(SIZES) - 3
    with torch.no_grad():
        for name, restored in results.items():
            x = noisy[name.split(" ", 1)[1]]
            assert float((torch.from_numpy(restored) - tiny(x, unit(30))).abs().max()) < 1e-5, name
    shapes, facts, ours = json.loads(done.stdout)
    image = [1, 3, "height", "width"]
    assert shapes == {"noisy": image, "level": [1], "restored": image} and not ours
    for about, smallest in zip(facts, (1, 17)):
        assert about["name"] == DEFAULT and about["version"] == "kunet 0.1.0"
        assert about["sigma"] == "trained for 0 to 75, in 8-bit levels"
        assert f"float32 in [0, 1]; sides of {smallest} or more" in about["noisy"]


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"kit"}))
def test_the_form_for_any_size_is_the_same_function(name):
    """Before any graph: padding by an index, windows of their full size, and attention without windows."""
    for changes in ({}, {"attention": "global"}) if name == "kunet_compact" else ({},):
        torch.manual_seed(0)
        model = make(name, SMALL[name] | changes).eval()
        network, level = AnySize(model), torch.tensor([0.2])
        with torch.no_grad():
            for size in ((1, 1), (2, 3), (33, 70), (64, 96)):
                x = torch.rand(1, 3, *size)
                assert torch.allclose(network(x, level), model(x, level), atol=1e-5), size


def test_nothing_is_overwritten(refused, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    assert "exists already; give another -o, or --force" in refused("export", "-o", path)
    assert path.read_text() == "mine"
    (tmp_path / "folder.pt2").mkdir()
    assert "is a folder" in refused("export", "-o", tmp_path / "folder.pt2")


def test_wrong_words(refused, tmp_path, monkeypatch):
    assert "cannot export .pth; use .onnx or .pt2" in refused("export", "-o", tmp_path / "net.pth")
    assert "a file without a suffix" in refused("export", "-o", tmp_path / "net")
    assert "required: -o/--output" in refused("export")
    assert "no such weights file" in refused("export", "--weights", "kunet_huge", "-o", tmp_path / "net.pt2")
    monkeypatch.setattr("kunet.export.PACKAGES", ("onnx", "no_such_package"))
    line = refused("export", "-o", tmp_path / "net.onnx")
    assert "needs the package no_such_package; pip install 'kunet[export]'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("kit", {"width": 8, "levels": 2}, "KiT sorts the patches"),
        ("unet", {"widths": [4, 6], "classes": 2}, "only networks that restore"),
    ],
)
def test_networks_that_cannot_be_exported(refused, tmp_path, name, args, words):
    save_weights(tmp_path / "w.safetensors", make(name, args), name, args, {})
    assert words in refused("export", "--weights", tmp_path / "w.safetensors", "-o", tmp_path / "net.pt2")
    assert not (tmp_path / "net.pt2").exists()


def test_a_network_that_is_told_nothing(tmp_path):
    """Blind weights take the image alone. A file that gives other images is not kept."""
    args, path = {"width": 6, "depth": 3}, tmp_path / "net.pt2"
    card = {"recipe": {"task": "denoise", "task_args": {"blind": True}}}
    save_weights(tmp_path / "w.safetensors", make("dncnn", args), "dncnn", args, card)
    code = f"""
import torch
from kunet import export
from kunet.cli import main
words = ["export", "--weights", {str(tmp_path / "w.safetensors")!r}, "-o", {str(path)!r}]
main(words)
network = torch.export.load({str(path)!r}).module()
print(network(torch.rand(1, 3, 40, 50)).shape)
export.MULTIPLES[export.DnCNN] = 8  # other borders than its own
main([*words, "--force"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "torch.Size([1, 3, 40, 50])" in done.stdout, done.stderr
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the exported network differs from the trained one by" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pt2", "w.json", "w.safetensors"]  # the first one's


def test_tables_in_the_shipped_weights(tiny):
    """The PSNR of no held-out photo changes by 0.02 dB (measured: by 0.014 at most), no value by 0.02."""
    tables = with_tables(tiny)
    kinds = lambda model: [type(m) for m in model.modules() if isinstance(m, KANLinear | TableKANLinear)]
    assert kinds(tables) == 2 * [TableKANLinear] and kinds(tiny) == 2 * [KANLinear] and not tables.training
    for sigma in (15, 50):
        for name, photo in bundled("heldout").items():
            clean = to_tensor(photo[:256, :256])
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * unit(sigma)
            with torch.no_grad():
                ours, theirs = (model((clean + noise)[None], unit(sigma))[0].clamp(0, 1) for model in (tables, tiny))
            psnr = lambda image, clean=clean: float(metrics.psnr(image[None], clean[None]))
            change = psnr(ours) - psnr(theirs)
            assert 0 < abs(change) < 0.02 and float((ours - theirs).abs().max()) < 0.02, (name, sigma, change)


def test_tables_in_other_models():
    layer, x = KANLinear(4, 4), torch.empty(50, 4).uniform_(-1, 1)
    shared = with_tables(nn.Sequential(layer, layer))
    assert shared[0] is shared[1] and isinstance(shared[0], TableKANLinear)
    assert torch.allclose(with_tables(layer)(x), layer(x), atol=0.02)
    with pytest.raises(ValueError, match="Linear holds no KANLinear"):
        with_tables(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="0 samples"):
        with_tables(layer, 0)
