"""The contract of every model, and what each paper's must be."""

import inspect
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from kunet.models import MODELS, CompactKUnet, KUnet, UNet
from kunet.models.kunet import REFERENCE_PREFIXES, from_reference
from kunet.runs import load_weights, save_weights

SMALL = {
    "unet": {"widths": (4, 6, 8)},
    "kunet": {"widths": (4, 6, 8, 8, 16), "hidden": 24, "heads": 2, "projections": (20, 16)},
    "kunet_compact": {"widths": (4, 8, 8), "depths": (1, 1, 1), "token_depth": 1, "heads": 2, "window": 4},
    "dncnn": {"width": 6, "depth": 4},
    "ffdnet": {"width": 8, "depth": 4},
    "nafnet": {"width": 4, "encoder": (1, 1), "middle": 1, "decoder": (1, 1)},
    "kbnet_s": {"width": 8, "encoder": (1, 1), "middle": 1, "decoder": (1, 1), "bases": 4},
    "kbnet_l": {"width": 8, "depths": (1, 1), "heads": (1, 2), "refinement": 1, "bases": 4},
    "kit": {"width": 8, "levels": 2, "blocks": 1, "buckets": 8, "ratio": 2.0, "conv": True, "skip": "concat"},
    "kmunet": {"widths": (4, 6, 8), "convs": 1},
    "ukan": {"dims": (16, 20, 24), "classes": None},
}
NAMES = sorted(MODELS)

# The deepest module, whose output must reach every pixel, and what an output pixel sees: "all" of the image or what is
# "near", less than 96 pixels away in the small versions.
FOOTPRINT = {
    "unet": ("encoder.2", "near"),
    "kunet": ("projections", "all"),
    "kunet_compact": ("tokens", "near"),
    "dncnn": ("body", "near"),
    "ffdnet": ("body", "near"),
    "nafnet": ("middle", "all"),
    "kbnet_s": ("middle", "all"),
    "kbnet_l": ("encoder.1", "all"),
    "kit": ("bottleneck", "all"),
    "kmunet": ("encoder.2", "near"),
    "ukan": ("encoder.4", "all"),
}


def small(name, **changes):
    torch.manual_seed(0)
    return MODELS[name](**{**SMALL[name], **changes})


def last(model):
    return model.tail if isinstance(model, CompactKUnet) else model.last


def test_every_model_has_a_small_version_and_a_footprint_here():
    assert set(SMALL) == set(MODELS) == set(FOOTPRINT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "batch,height,width",
    [(1, 1, 1), (3, 1, 37), (2, 16, 16), (3, 33, 47), (1, 64, 128), (2, 150, 131), (1, 301, 517)],
)
def test_any_size(name, batch, height, width):
    model = small(name).eval()
    x = torch.rand(batch, 3, height, width)
    with torch.no_grad():
        y = model(x, torch.full((batch,), 0.2))
        assert y.shape == x.shape and bool(y.isfinite().all())
        if batch > 1:
            assert torch.allclose(y[:1], model(x[:1], 0.2), atol=1e-5), (
                "an image depends on its neighbours in the batch"
            )


@pytest.mark.parametrize("name", NAMES)
def test_the_level_may_be_a_map(name):
    """Any size, with one level a pixel; an even one is the number, and models that use it feel it where it is."""
    model = small(name).eval()
    with torch.no_grad():
        for batch, height, width in ((1, 1, 1), (3, 33, 47)):
            x = torch.rand(batch, 3, height, width)
            y = model(x, torch.full((batch, 1, height, width), 0.2))
            assert torch.allclose(y, model(x, 0.2), atol=1e-6)
        levels = torch.full((3, 1, 33, 47), 0.2)
        levels[1, :, 10, 20] = 0.9
        changed = (model(x, levels) - y).abs().amax(1) > 1e-9
        assert not changed[0].any() and not changed[2].any()
        assert bool(changed[1, 10, 20]) == bool(changed.any()) == (name in ("ffdnet", "kunet_compact"))
    if changed.any():
        with pytest.raises(ValueError, match=r"noise level: a map of \(3, 1, 33, 40\) .* \(3, 1, 33, 47\)"):
            model(x, levels[..., :40])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_says_whether_it_restores(name):
    assert small(name).classes is None
    if "classes" in inspect.signature(MODELS[name]).parameters:
        assert small(name, classes=5).classes == 5


def all_get_gradients(model):
    model(torch.rand(2, 3, 64, 64), 0.2).square().mean().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()), key


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    all_get_gradients(small(name))


@pytest.mark.parametrize("name", [n for n in NAMES if "classes" in inspect.signature(MODELS[n]).parameters])
def test_classes(name):
    model = small(name, classes=5)
    with torch.no_grad():
        for size in ((1, 1), (33, 47)):
            logits = model.eval()(torch.rand(2, 3, *size))
            assert logits.shape == (2, 5, *size) and bool(logits.isfinite().all())
        for p in last(model).parameters():
            p.zero_()
        assert not model(torch.rand(1, 3, 40, 40)).any()  # the image is not added
    all_get_gradients(small(name, classes=5))


@pytest.mark.parametrize("name", NAMES)
def test_predicts_a_residual_without_a_clamp(name):
    model = small(name).eval()
    x = torch.randn(1, 3, 64, 64)  # far outside [0, 1]
    with torch.no_grad():
        assert not torch.equal(model(x, 0.2), x)
        for p in last(model).parameters():
            p.zero_()
        assert torch.equal(model(x, 0.2), x)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_bit_equal(name, tmp_path):
    model = small(name).eval()
    save_weights(tmp_path / "w.safetensors", model, name, SMALL[name], {"card": 1})
    loaded, card = load_weights(tmp_path / "w.safetensors")
    x = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.1), model(x, 0.1))
    assert card == {"card": 1}


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast(name):
    model = small(name).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(x, 0.2)
    with torch.no_grad():
        change = (model(x, 0.2) - x).norm()
        assert float((low.float() - model(x, 0.2)).norm() / change) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_channels_last(name):
    model, x = small(name).eval(), torch.rand(2, 3, 33, 47)
    with torch.no_grad():
        y = model(x, 0.2)
        again = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), 0.2)
    assert torch.allclose(again, y, atol=1e-5)


EXPORT = """
import json, sys, warnings
import torch
from kunet.models import make
warnings.filterwarnings("ignore")
far = {}
for name, args in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    model, level = make(name, args).eval(), torch.tensor([0.1, 0.3])
    with torch.no_grad():
        program = torch.export.export(model, (torch.rand(2, 3, 33, 47), level))
        x = torch.rand(2, 3, 33, 47)
        far[name] = float((program.module()(x, level) - model(x, level)).abs().max())
print("RESULT" + json.dumps(far))
"""


def test_exported_programs_compute_the_same():
    """In a process without shape checks, which graphs do not hold."""
    words = [sys.executable, "-c", EXPORT, json.dumps(SMALL)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    far = json.loads(done.stdout.split("RESULT")[1])
    assert set(far) == set(MODELS) and all(value < 1e-5 for value in far.values()), far


def networks(make):
    """A few random networks in double precision: a few, because a ReLU that happens to be shut hides a pixel."""
    for seed in range(3):
        torch.manual_seed(seed)
        yield make().eval().double()


def influence(make, part, size, run=lambda model, x: model(x, 0.2)):
    """Which output pixels can change when the output of the module ``part`` does: (H, W), over a few networks."""
    reached = torch.zeros(size, dtype=torch.bool)
    for model in networks(make):
        x, results = torch.rand(1, 3, *size, dtype=torch.float64), []
        for push in (0.0, 1.0):
            noise = torch.Generator().manual_seed(0)
            handle = model.get_submodule(part).register_forward_hook(
                lambda m, i, output, push=push, noise=noise: output + push * torch.randn(output.shape, generator=noise)
            )
            with torch.no_grad():
                results.append(run(model, x))
            handle.remove()
        reached |= (results[1] - results[0]).abs().amax((0, 1)) > 1e-9
        if bool(reached.all()):
            break
    return reached


@pytest.mark.parametrize("name", NAMES)
def test_the_deepest_module_reaches_every_pixel(name):
    assert bool(influence(lambda: MODELS[name](**SMALL[name]), FOOTPRINT[name][0], (150, 131)).all())


WIDE = {"widths": (8, 16, 24, 32, 48), "hidden": 64, "heads": 4, "projections": (64, 48)}


def test_compat_reaches_the_centre_only():
    reached = influence(lambda: KUnet("compat", **WIDE), "projections", (256, 256), lambda model, x: model.network(x))
    wanted = torch.zeros(256, 256, dtype=torch.bool)
    wanted[34:222, 34:222] = True  # rows and columns 34 to 221: 53.9% of the pixels
    assert torch.equal(reached, wanted)


def changes(model, x, spots):
    """For each spot (row, column), how far what the model adds to each pixel moves when x there does: (H, W)."""
    with torch.no_grad():
        before = model(x, 0.2) - x
        for row, column in spots:
            other = x.clone()
            other[:, :, row, column] += 0.5
            yield (model(other, 0.2) - other - before).abs().amax((0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_added_to_a_pixel_depends_on_that_pixel(name):
    """Corners, edges and the inside of an image whose sides nothing divides."""
    missing = {(0, 0), (0, 52), (44, 0), (44, 52), (0, 17), (31, 52), (22, 26), (23, 33)}
    for model in networks(lambda: MODELS[name](**SMALL[name])):
        spots = sorted(missing)
        found = changes(model, torch.rand(1, 3, 45, 53, dtype=torch.float64), spots)
        missing -= {spot for spot, change in zip(spots, found) if change[spot] > 1e-9}
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_how_far_a_pixel_sees(name):
    """Nothing at all arrives at a "near" model from far away; of "all" a shut ReLU may hide some pixels."""
    reached = torch.zeros(128, 128, dtype=torch.bool)
    for model in networks(lambda: MODELS[name](**SMALL[name])):
        reached |= next(changes(model, torch.rand(1, 3, 128, 128, dtype=torch.float64), [(0, 0)])) > 0
        far = float(reached[96:, 96:].double().mean())
        if far > 0.9:
            break
    assert far > 0.9 if FOOTPRINT[name][1] == "all" else far == 0


def test_published_counts():
    """The published network's parameters, module by module (its file, github.com/dbasina/KUnet_Dn50_Competition)."""
    with torch.device("meta"):
        model = KUnet("compat")
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert [count(d) for d in model.down] == [5_342, 27_264, 103_680, 403_968]
    assert count(model.bottleneck) == 1_594_368
    assert count(model.tokenizer) == 4_197_376
    assert count(model.attention) == 12_596_224
    assert [count(k) for k in model.projections] == [20_971_520, 62_914_560, 31_457_280]
    assert [count(u) + count(d) for u, d in zip(model.up, model.decoder)] == [2_902_528, 730_368, 184_960, 47_424]
    assert count(model.last) == 195
    assert count(model) == 138_137_057
    assert len(list(model.parameters())) == 143
    assert sum(b.numel() for b in model.buffers()) == 73_728


def reference_state(seed=0):
    """Random numbers under the published names, in the published layout, narrower: widths 4, 6, 8, 8, 16."""
    generator = torch.Generator().manual_seed(seed)
    ours = KUnet("compat", **SMALL["kunet"]).state_dict()
    published = {}
    for key, value in ours.items():
        prefix = next(p for p, o in REFERENCE_PREFIXES.items() if key.startswith(o + "."))
        leaf = key[len(REFERENCE_PREFIXES[prefix]) + 1 :]
        if ".conv" in prefix:
            index, part, *rest = leaf.split(".")
            leaf = ".".join(
                [index, {"0": "depthwise", "1": "pointwise"}[part], *rest] if rest else [index, "layer_norm", part]
            )
        leaf = leaf.replace("knots", "grid")
        random = torch.randn(value.shape, generator=generator) * (0.3 if value.ndim > 1 else 1)
        published[f"{prefix}.{leaf}"] = value if "grid" in leaf else random
    return published


def reference_forward(s, x):
    """The published network written out from its description, functional, on the published names."""

    def double(prefix, x):
        for i in (0, 3):
            w = f"{prefix}.{i}"
            x = F.conv2d(x, s[f"{w}.depthwise.weight"], s[f"{w}.depthwise.bias"], padding=1, groups=x.shape[1])
            x = F.conv2d(x, s[f"{w}.pointwise.weight"], s[f"{w}.pointwise.bias"])
            n = f"{prefix}.{i + 1}.layer_norm"
            x = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), s[f"{n}.weight"], s[f"{n}.bias"]).permute(0, 3, 1, 2)
            x = x.relu()
        return x

    def norm(name, x):
        return F.layer_norm(x, (x.shape[-1],), s[f"{name}.weight"], s[f"{name}.bias"])

    def kan(name, x):
        grid, k = s[f"{name}.grid"], 3
        b = ((x[..., None] >= grid[:, :-1]) & (x[..., None] < grid[:, 1:])).float()
        for j in range(1, k + 1):
            rise = (x[..., None] - grid[:, : -j - 1]) / (grid[:, j:-1] - grid[:, : -j - 1])
            fall = (grid[:, j + 1 :] - x[..., None]) / (grid[:, j + 1 :] - grid[:, 1:-j])
            b = rise * b[..., :-1] + fall * b[..., 1:]
        weight = s[f"{name}.spline_weight"] * s[f"{name}.spline_scaler"][..., None]
        return torch.einsum("bnij,oij->bno", b, weight) + F.silu(x) @ s[f"{name}.base_weight"].T

    x, skips = (x - 0.5) / 0.5, []
    for i in range(1, 5):
        skips.append(double(f"down{i}.conv.conv", x))
        x = F.max_pool2d(skips[-1], 2)
    x = double("bottleneck.conv", x)
    tokens = F.conv2d(x, s["tokenizer.proj.weight"], s["tokenizer.proj.bias"], stride=2)
    size = tokens.shape[-2:]
    t = norm("tokenizer.norm", tokens.flatten(2).transpose(1, 2))
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    attention.load_state_dict(
        {k.removeprefix("self_attention.attention."): v for k, v in s.items() if "self_attention.attention." in k}
    )
    t = norm("self_attention.norm1", t + attention(t, t, t)[0])
    hidden = F.linear(t, s["self_attention.ff.0.weight"], s["self_attention.ff.0.bias"]).relu()
    t = norm(
        "self_attention.norm2", t + F.linear(hidden, s["self_attention.ff.2.weight"], s["self_attention.ff.2.bias"])
    )
    for i in (1, 2):
        t = kan(f"token_projection{i}", t)
    x = t.transpose(1, 2).reshape(len(x), -1, *size)
    for i, skip in zip(range(1, 5), skips[::-1]):
        x = F.conv_transpose2d(x, s[f"up{i}.up.up_scale.weight"], s[f"up{i}.up.up_scale.bias"], stride=2)
        dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        x = double(f"up{i}.conv.conv", torch.cat([skip, x], 1))
    return (F.conv2d(x, s["last_conv.weight"], s["last_conv.bias"]) * 0.5 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("height,width", [(256, 256), (250, 250), (33, 47)])
def test_compat_computes_what_was_published(height, width):
    state = reference_state()
    model = KUnet("compat", **SMALL["kunet"]).eval()
    model.load_state_dict(from_reference(state), strict=True)
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float((model(x) - reference_forward(state, x)).abs().max()) < 1e-5


def test_compact_uses_the_noise_level():
    model = small("kunet_compact").eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        one, other = model(x, 0.1), model(x, 0.3)
        both = model(x, torch.tensor([0.1, 0.3]))
    assert not torch.allclose(one, other)
    assert torch.allclose(both[0], one[0], atol=1e-6) and torch.allclose(both[1], other[1], atol=1e-6)


def test_unet_skips_matter():
    with_skips, without = UNet(3, (4, 8)), UNet(3, (4, 8), skips=False)
    assert with_skips.decoder[0][0][1].in_channels == 8 and without.decoder[0][0][1].in_channels == 4


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: KUnet("broken"), '"compat" or "fixed"'),
        (lambda: KUnet(projections=(2048, 512)), "end at 512"),
        (lambda: KUnet("compat", **SMALL["kunet"])(torch.rand(1, 3, 20, 64)), "20 x 64 image.*32 x 32 at least"),
        (lambda: CompactKUnet(widths=(8, 8), depths=(1,)), "2 widths and 1 depths"),
        (lambda: UNet(widths=()), "widths is empty"),
        (lambda: from_reference({"other.weight": torch.zeros(1)}), "'other.weight'"),
    ],
)
def test_messages(call, words):
    with pytest.raises(ValueError, match=words):
        call()
