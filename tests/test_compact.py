"""The released architecture: in boxes as in one piece, grown from a smaller one, told the ends, taken apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kunet import recipes
from kunet.attention import ChannelAttention
from kunet.models import CompactKUnet
from kunet.models.compact import ATTENTIONS
from kunet.models.grow import grow
from kunet.restore import Network
from kunet.runs import load_weights, save_weights
from kunet.tiling import boxes
from kunet.train import plan
from kunet.weights import find

SMALL = {"widths": (4, 6, 8), "depths": (1, 1, 1), "token_depth": 2, "heads": 2, "window": 4}
OLD = SMALL | {"dense_levels": 1}


def network(**changes) -> CompactKUnet:
    torch.manual_seed(0)
    return CompactKUnet(**SMALL | changes).eval()


@pytest.fixture(scope="module")
def shipped():
    return load_weights(find("kunet_tiny"))[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(60, 400), st.integers(60, 400), st.booleans(), st.booleans())
def test_in_boxes_as_in_one_piece(height, width, varies, keep):
    model, x = network(ends=True), torch.rand(1, 3, height, width) * 1.4 - 0.2
    level = torch.rand(1, 1, height, width) / 5 if varies else 0.2
    calls = []
    with torch.inference_mode():
        parts = model.staged(x, level, 220**2, lambda: calls.append(1), keep)
        assert torch.allclose(parts, model(x, level), atol=1e-5)
    assert len(calls) == 2 * len(model.boxes(height, width, 220**2, keep))
    assert len(calls) > 2 or height * width <= 220**2 + 32 * 400


def test_the_margin_is_as_wide_as_needed_and_no_wider():
    """What the way down and up see of a picture of noise, in units of 16 pixels."""
    for depths in ((1, 1, 1), (1, 2, 4), (0, 0, 0)):
        model = network(depths=depths, token_depth=0).double()
        for stage in (model.tokenizer, model.unpatchify):  # the tokens are computed as a whole
            for parameter in stage.parameters():
                parameter.data.zero_()
        x = torch.rand(1, 3, 64 * model.reach + 16, 16, dtype=torch.float64)
        row = x.shape[2] // 2
        y = x.clone()
        y[:, :, row] += 1
        with torch.no_grad():
            rows = torch.nonzero((model(y, 0.1) - model(x, 0.1)).abs().amax((0, 1, 3)) > 0)
        reach = max(row - int(rows.min()), int(rows.max()) - row)
        assert 1.5 * (model.reach - 1) * 16 <= reach <= 2 * model.reach * 16  # the outermost rarely passes a ReLU


def test_large_photos_are_computed_in_boxes(shipped):
    x = torch.rand(3, 900, 1100)
    small, large = Network(shipped, memory=2e8), Network(shipped)
    how, parts = small.parts(900, 1100)
    assert how == "boxes" and parts > 2 and large.parts(900, 1100) == ("whole", 1)
    calls = []
    assert torch.allclose(small.run(x, 0.2, lambda: calls.append(1)), large.run(x, 0.2), atol=1e-5)
    assert len(calls) == parts == small.steps(900, 1100)
    levels = torch.rand(900, 1100) / 5
    assert torch.allclose(small.run(x, levels), large.run(x, levels), atol=1e-5)
    assert Network(shipped, memory=5e7).parts(900, 1100)[0] == "tiles"  # which hold no box with its margins


def test_sixteen_bits_are_of_the_network_not_of_the_image():
    """In boxes as in one piece, what is added to the image in float32 is not rounded with it."""
    x, model = torch.rand(3, 257, 300), network()
    whole, boxes = (Network(model, memory=memory, precision="bf16") for memory in (2e9, 1))
    object.__setattr__(boxes, "parts", lambda height, width: ("boxes", 0))
    whole = whole.run(x, 0.2)
    for keep in (False, True):
        object.__setattr__(boxes, "_room", lambda pixels, keep=keep: (220**2, keep))
        parts = boxes.run(x, 0.2)
        for y in (whole, parts):
            assert y.dtype == torch.float32 and float((y != y.bfloat16().float()).float().mean()) > 0.9
        assert torch.allclose(whole, parts, atol=0.01)


def test_maps_are_kept_where_there_is_room(shipped, monkeypatch):
    """In 2 GB those of 13 megapixels, not of 50; then the way down is computed once, with half the margin."""
    network = Network(shipped)
    most, keep = network._room(4500 * 3000)
    assert keep and 2**20 <= most < network._room(10**7)[0]
    more, keep = network._room(50 * 10**6)
    assert not keep and more == pytest.approx((2e9 - 50e6 * shipped.held) / network.bytes_per_pixel)
    # 32 channels at a half and 64 at a quarter of the size, and of those at an eighth three maps
    assert (shipped.kept, shipped.held) == (4 * (32 / 4 + 64 / 16), 3 * 4 * 128 / 64)
    downs, down = [], shipped._down
    monkeypatch.setattr(shipped, "_down", lambda *words: downs.append(1) or down(*words))
    x = torch.rand(1, 3, 900, 700)
    with torch.inference_mode():
        for keep, ways in ((True, 1), (False, 2)):
            downs.clear()
            shipped.staged(x, 0.2, 640**2, keep=keep)
            assert len(downs) == ways * len(shipped.boxes(900, 700, 640**2, keep)) > ways


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 20), st.integers(1, 4000))
def test_boxes(height, width, margin, most):
    found = boxes((height, width), most, margin)
    if height * width <= most:
        assert len(found) == 1
    covered = torch.zeros(height, width, dtype=torch.int)
    for box in found:
        box.of(covered, 1).add_(1)
        grown = box.grown(margin, (height, width))
        assert grown.of(covered, 1).numel() <= most
        inner = box.inside(grown)
        assert torch.equal(inner.of(grown.of(covered, 1), 1), box.of(covered, 1))
    assert not found or bool((covered == 1).all())


def test_too_small_boxes_are_refused():
    with pytest.raises(ValueError, match=r"boxes of 900 pixels cannot hold margins of \d+ pixels"):
        network().staged(torch.rand(1, 3, 300, 300), 0.1, 900)


@pytest.mark.parametrize(
    "changes",
    [
        {"dense_levels": 3},
        {"ends": True},
        {"depths": (2, 1, 3)},
        {"dense_levels": 2, "depths": (1, 2, 1), "ends": True},
    ],
)
def test_a_grown_network_is_the_same_function(changes):
    start, model = network(**OLD).double(), network(**OLD | changes).double()
    x = torch.rand(2, 3, 40, 52, dtype=torch.float64) * 1.4 - 0.2
    with torch.no_grad():
        assert not torch.allclose(model(x, 0.2), start(x, 0.2), atol=1e-3)
        grow(model, start)
        assert torch.allclose(model(x, 0.2), start(x, 0.2), atol=1e-12)
    model(x, 0.2).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert "ends" not in changes or model.head.weight.grad[:, -12:].any()  # what is new can learn


def test_only_a_larger_network_can_be_grown(tmp_path):
    with pytest.raises(ValueError, match="does not contain the other"):
        grow(network(**OLD), network(**OLD | {"depths": (2, 2, 2)}))
    with pytest.raises(ValueError, match="does not contain the other"):
        grow(network(**OLD), network(**OLD | {"widths": (4, 6, 10)}))
    save_weights(tmp_path / "w.safetensors", network(**OLD), "kunet_compact", OLD, {})
    change = {"start": str(tmp_path / "w.safetensors"), "model_args": OLD | {"window": 8, "dense_levels": 3}}
    model, _ = plan.build(recipes.load("kunet_small", change))  # a window has no weights
    assert isinstance(model, CompactKUnet)
    with pytest.raises(ValueError, match=r"recipe 'kunet_small': start .* holds another model"):
        plan.build(recipes.load("kunet_small", change | {"model_args": OLD | {"widths": (4, 4, 4)}}))


def test_the_recipe_of_small_starts_as_tiny(shipped):
    model, _ = plan.build(recipes.load("kunet_small", {"start": "kunet_tiny"}))  # of another training
    x = torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x, 0.2), shipped(x, 0.2), atol=1e-5)


def test_it_is_told_the_ends_of_the_range():
    model = network(ends=True)
    seen = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.full((1, 3, 16, 16), 0.5)
    x[:, 0], x[:, 1, :8] = 1.25, 0.0
    model(x, 0.1)
    ends = seen[0][0, 13:]
    assert ends.shape[0] == 12 and bool((ends[:4] == 1).all()) and bool((ends[8:] == 0).all())
    assert bool((ends[4:8, :4] == -1).all()) and bool((ends[4:8, 4:] == 0).all())


VARIANTS = [
    *({"attention": word} for word in ATTENTIONS),
    {"projection": "linear"},
    {"projection": "mlp", "mlp_width": 5},
    {"basis": "rational"},
    {"grid_size": 3, "degree": 1, "grid_range": (-1.0, 1.0)},
    {"positions": False},
    {"tokens": False},
    {"token_residual": False},
    {"skips": "concat"},
    {"skips": "none"},
    {"residual": False},
    {"attention": "none", "projection": "linear", "positions": False, "skips": "concat", "residual": False},
]
named = lambda changes: "-".join(map(str, changes.values()))


@pytest.mark.parametrize("changes", VARIANTS, ids=named)
def test_a_part_taken_out_leaves_a_network(changes):
    """Of any size, in boxes as in one piece, and all of it learns."""
    model = network(**changes)
    with torch.inference_mode():
        for size in ((1, 1), (33, 47)):
            y = model(torch.rand(2, 3, *size), 0.2)
            assert y.shape == (2, 3, *size) and bool(y.isfinite().all())
        x = torch.rand(1, 3, 330, 250)
        assert len(model.boxes(330, 250, 220**2)) > 1
        for keep in (False, True):
            assert torch.allclose(model.staged(x, 0.2, 220**2, keep=keep), model(x, 0.2), atol=1e-5)
    model.train()(torch.rand(2, 3, 128, 96), 0.2).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_the_defaults_are_the_released_network(shipped):
    """Its parameters, by number; and each switch's default word is the network without the switch."""
    assert sum(p.numel() for p in shipped.parameters()) == 1_012_364
    defaults = {"tokens": True, "attention": "window", "projection": "kan", "mlp_width": 9, "basis": "bspline"}
    defaults |= {"positions": True, "token_residual": True, "skips": "add", "residual": True}
    one, other = network().state_dict(), network(**defaults).state_dict()
    assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)
    block = [key.removeprefix("tokens.0.") for key in one if key.startswith("tokens.0.")]
    assert {key.split(".")[0] for key in block} == {"position", "norm1", "norm2", "attention", "kan"}
    parts = {"head", "encoder", "down", "tokenizer", "tokens", "unpatchify", "decoder", "up", "tail"}
    assert {key.split(".")[0] for key in one} == parts


def test_each_switch_does_what_it_says():
    x = torch.rand(1, 3, 64, 80)
    count = lambda **changes: sum(p.numel() for p in network(**changes).tokens.parameters())
    wide = {"widths": (8, 16, 96), "heads": 4}
    parts = count(**wide) - count(**wide, attention="none") - 2 * 2 * 96  # without the norm before it
    conv = count(**wide, attention="conv") - count(**wide, attention="none") - 2 * 2 * 96
    assert conv == pytest.approx(parts, rel=0.02) and parts == 2 * (4 * 96**2 + 4 * 96)
    with torch.no_grad():
        plain, bare = network(), network(residual=False)
        assert torch.allclose(plain(x, 0.2), x + bare(x, 0.2), atol=1e-6)
        for model in (zeroed := network(), replaced := network(token_residual=False)):
            for parameter in model.unpatchify.parameters():
                parameter.zero_()
        out = network(tokens=False)
        out.load_state_dict({k: v for k, v in zeroed.state_dict().items() if k in out.state_dict()})
        assert torch.equal(out(x, 0.2), zeroed(x, 0.2)) and not torch.allclose(replaced(x, 0.2), out(x, 0.2))
        # one window of all tokens, or many
        assert torch.equal(network(attention="global")(x, 0.2), network(window=5)(x, 0.2))
        assert not torch.allclose(network(attention="global")(x, 0.2), network(window=2)(x, 0.2))
        deep = network(skips="none")
        for parameter in deep.up[0].parameters():
            parameter.zero_()
        assert torch.allclose(deep(x, 0.2) - x, deep(x * 0, 0.2), atol=1e-6)  # nothing passes the bottleneck by


def test_attention_among_channels_by_hand():
    torch.manual_seed(0)
    layer, x = ChannelAttention(6, 2).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    layer.temperature.data = torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        q, k, v = layer.qkv(x.reshape(2, 12, 6)).chunk(3, -1)
        rows = []
        for head in range(2):
            a, b, c = (t[..., 3 * head : 3 * head + 3] for t in (q, k, v))
            scores = torch.einsum("bnd,bne->bde", a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True))
            rows.append(torch.einsum("bde,bne->bnd", (layer.temperature[head] * scores).softmax(-1), c))
        assert torch.allclose(layer(x), layer.out(torch.cat(rows, -1)).reshape(x.shape))


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"attention": "local"}, "attention is 'local'; it must be one of window, global, channel, conv, none"),
        ({"projection": "conv"}, "projection is 'conv'; it must be one of kan, linear, mlp"),
        ({"skips": "both"}, "skips is 'both'; it must be one of add, concat, none"),
        ({"projection": "mlp", "mlp_width": 0}, "mlp_width is 0; it must be 1 or more"),
        ({"basis": "sine"}, "basis 'sine' is not known; choose one of bspline"),
    ],
)
def test_unknown_words_are_refused(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        network(**changes)
    assert "\n" not in str(error.value)
