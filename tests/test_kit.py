"""k-NN local attention by its four laws and by brute force; KiT's counts and costs."""

import importlib.util
import json
import math
import weakref
from functools import partial

import pytest
import torch
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kunet.attention import KNNAttention, WindowAttention
from kunet.attention.knn import from_patches, polytope_hash, to_patches
from kunet.models import KiT
from kunet.models.kit import FOUR_LEVELS

spec = importlib.util.spec_from_file_location("kit_search", ROOT / "benchmarks" / "kit_search.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


def layer(seed=0, dim=8, heads=2, **changes):
    torch.manual_seed(seed)
    return KNNAttention(dim, heads, seed=seed, **changes)


def slowly(attention, x, chunk_of):
    """The definition, pair by pair: ``chunk_of(n)`` are the patches that patch n attends to."""
    q, k, v = (to_patches(part, attention.patch) for part in attention.qkv(x).chunk(3, -1))
    split = lambda patch: patch.unflatten(-1, (attention.heads, -1)).transpose(-3, -2)  # B, heads, P, d
    y = torch.zeros_like(q)
    for n in range(q.shape[1]):
        near = chunk_of(n)
        for j in near:
            scores = split(q[:, n]) @ split(k[:, j]).transpose(-1, -2) / math.sqrt(q.shape[-1] // attention.heads)
            y[:, n] += (scores.softmax(-1) @ split(v[:, j])).transpose(-3, -2).flatten(-2) / len(near)
    return attention.out(from_patches(y, x.shape[1:3]))


def test_patches_and_back():
    x = torch.randn(2, 8, 12, 3)
    patches = to_patches(x, 4)
    assert patches.shape == (2, 6, 16, 3)
    assert torch.equal(patches[1, 4].reshape(4, 4, 3), x[1, 4:, 4:8])  # row 1, column 1 of 2 x 3 patches
    assert torch.equal(from_patches(patches, (8, 12)), x)


def test_one_neighbour_is_attention_inside_windows():
    ours, windows = layer(k=1), WindowAttention(8, 2, 4)
    windows.load_state_dict({key: value for key, value in ours.state_dict().items() if key != "rotations"})
    x = torch.randn(2, 12, 20, 8)
    assert torch.allclose(ours(x), windows(x), atol=1e-6)


@pytest.mark.parametrize("k", [6, 100])
def test_all_neighbours_are_all_pairs(k):
    attention, x = layer(k=k), torch.randn(2, 8, 12, 8)
    assert torch.allclose(attention(x), slowly(attention, x, lambda n: range(6)), atol=1e-6)


@pytest.mark.parametrize("k", [2, 4, 5])
@pytest.mark.parametrize("buckets", [0, 8])
def test_chunks_are_runs_of_the_sorted_hashes(k, buckets, monkeypatch):
    """15 patches, so that chunks of 2 and 4 leave a rest, whose chunk reaches back; a few scores at a time."""
    monkeypatch.setattr("kunet.attention.knn.SCORES_AT_ONCE", 10_000)
    attention, x = layer(k=k, buckets=buckets), torch.randn(1, 12, 20, 8)
    order = attention.order(to_patches(x, 4))[0].tolist()
    assert sorted(order) == list(range(15)) and (order == list(range(15))) == (buckets == 0)

    def chunk_of(n):
        start = min(order.index(n) // k * k, 15 - k)
        return order[start : start + k]

    assert torch.allclose(attention(x), slowly(attention, x, chunk_of), atol=1e-6)


@pytest.mark.parametrize("k", [4, 5])
def test_moving_patches_moves_the_result(k):
    """With distinct hashes the order of the patches in the image does not matter; without hashing it does."""
    attention, x = layer(dim=16, k=k, buckets=4096), torch.randn(1, 8, 24, 16)
    hashes = polytope_hash(to_patches(x, 4).mean(2), attention.rotations)[0]
    assert len(set(hashes.tolist())) == 12
    shuffle = torch.randperm(12)
    move = lambda t: from_patches(to_patches(t, 4)[:, shuffle], (8, 24))
    assert torch.allclose(attention(move(x)), move(attention(x)), atol=1e-6)
    rows = layer(dim=16, k=k, buckets=0)
    assert not torch.allclose(rows(move(x)), move(rows(x)), atol=1e-3)


def test_equal_patches_hash_equally_and_stay_in_order():
    attention, tile = layer(buckets=128), torch.randn(2, 4, 4, 8)
    patches = to_patches(tile.repeat(1, 5, 6, 1), 4)
    hashes = polytope_hash(patches.mean(2), attention.rotations)
    assert (hashes == hashes[:, :1]).all() and hashes.min() >= 0 and hashes.max() < 128
    assert torch.equal(attention.order(patches)[0], torch.arange(30))
    assert torch.equal(polytope_hash(3 * patches.mean(2), attention.rotations), hashes)  # only angles count


def test_centred_hashes_ignore_what_all_patches_share():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 64, 16, 16, generator=generator, dtype=torch.float64)
    shared = 9 * torch.randn(16, generator=generator, dtype=torch.float64)
    plain, centred = (layer(dim=16, centre=centre).double() for centre in (False, True))
    assert torch.equal(centred.order(patches + shared), centred.order(patches))
    assert not torch.equal(plain.order(patches + shared), plain.order(patches))


def test_collisions_follow_the_angle():
    """Two buckets are the sides of a random plane: vectors at an angle t fall together with probability 1 - t / pi."""
    rotations = torch.randn(8, 20_000, generator=torch.Generator().manual_seed(0))
    for t in (0.3, 1.0, 2.5):
        u, v = torch.zeros(8), torch.zeros(8)
        u[0], v[0], v[1] = 1, math.cos(t), math.sin(t)
        together = [polytope_hash(torch.stack([u, v]), r[:, None]).unique().numel() == 1 for r in rotations.T[:4000]]
        assert abs(sum(together) / 4000 - (1 - t / math.pi)) < 4 * 0.5 / math.sqrt(4000)


def test_hashing_finds_neighbours():
    """In an image of 8 kinds of patches, a little noisy and shuffled, patches of a kind end up in a chunk."""
    generator = torch.Generator().manual_seed(0)
    kinds, kind = torch.randn(8, 1, 16, generator=generator), torch.arange(64).remainder(8)
    kind = kind[torch.randperm(64, generator=generator)]
    patches = (kinds[kind] + 0.05 * torch.randn(64, 16, 16, generator=generator))[None]
    agree = lambda order: kind[order].view(16, 4).eq(kind[order].view(16, 4)[:, :1]).float().mean()
    assert agree(KNNAttention(16, 1, buckets=256).order(patches)[0]) > 0.9 > 0.6 > agree(torch.arange(64))


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside this context held at a time, views counted once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage not in self.known:
                self.known.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


def costs(attention, sides):
    """(floating-point operations, peak bytes) of a forward pass on maps of these sides."""
    found = []
    for side in sides:
        x = torch.randn(1, side, side, 8)
        with FlopCounterMode(display=False) as flops, LiveBytes() as bytes:
            attention(x)
        found.append((flops.get_total_flops(), bytes.peak))
    return found


def exponents(found, sides):
    pixels = 2 * math.log(sides[-1] / sides[0])
    return [math.log(last / first) / pixels for first, last in zip(found[0], found[-1])]


@pytest.mark.parametrize("learning", [False, True])
def test_cost_is_linear_in_the_number_of_patches(learning):
    sides = (64, 128, 256, 512)
    with torch.set_grad_enabled(learning):
        found = costs(layer(heads=1), sides)
        assert max(exponents(found, sides)) <= 1.1, found
        assert min(exponents(costs(layer(heads=1, k=10**6), (16, 32, 64)), (16, 32, 64))) > 1.4  # all pairs are not


def test_the_default_has_the_counts_of_the_results_file():
    results, found = json.loads(bench.RESULTS.read_text()), json.loads(json.dumps(bench.search()))
    assert {key: results[key] for key in found} == found
    for network, name in ((KiT, "chosen"), (partial(KiT, **FOUR_LEVELS), "alternative")):
        with torch.device("meta"):
            model, x = network(), torch.rand(1, 3, 256, 256)
            chosen = KiT(**results[name]["args"])
        assert [p.shape for p in model.parameters()] == [p.shape for p in chosen.parameters()]
        assert sum(p.numel() for p in model.parameters()) == results[name]["parameters"]
        with FlopCounterMode(display=False) as flops:
            model(x)
        assert flops.get_total_flops() / 2e9 == pytest.approx(results[name]["gmacs"], abs=5e-4)


def test_the_default_is_the_supplements():
    """Stages of C, 2C, 4C, a bottleneck of 8C that sees N / 64 patches with k = 1; two blocks each, r = 4, k = 4."""
    with torch.device("meta"):
        model, seen = KiT(), []
        for block in model.bottleneck:
            block.attention.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].shape))
        model(torch.rand(1, 3, 256, 256))
    dims = [stage[0].norm1.normalized_shape[0] for stage in (*model.encoder, model.bottleneck, *model.decoder)]
    c = model.head.out_channels
    assert dims == [c, 2 * c, 4 * c, 8 * c, 4 * c, 2 * c, c] and model.multiple == 32
    assert [shape[1] * shape[2] // 16 for shape in seen] == [64 * 64 // 64] * 2
    attention = [block.attention for stage in (*model.encoder, *model.decoder) for block in stage]
    assert len(attention) == 12 and {(layer.k, layer.patch) for layer in attention} == {(4, 4)}
    assert {layer.k for layer in (b.attention for b in model.bottleneck)} == {1}
    assert all(layer.qkv.in_features == 32 * layer.heads for layer in attention)


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": 3, "width": 16, "ratio": 2.5, "conv": False, "down": 3, "skip": "add"},
        {"levels": 2, "width": 24, "ratio": 1.0, "conv": True, "down": 2, "skip": "concat", "k": 2, "blocks": 1},
    ],
)
def test_costs_by_formula(changes):
    args = bench.FIXED | changes
    parameters, macs = bench.cost(args)
    with torch.device("meta"):
        model, x = KiT(**args), torch.rand(1, 3, 64, 128)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as flops:
        model(x)
    assert flops.get_total_flops() == 2 * macs * 64 * 128


def test_rotations_are_saved_and_differ():
    model = KiT(width=8, levels=1, blocks=2)
    rotations = [value for key, value in model.state_dict().items() if key.endswith("rotations")]
    assert len(rotations) == 6 and rotations[0].shape == (8, 32)
    assert not torch.equal(rotations[0], rotations[1])
    again = [b for _, b in KiT(width=8, levels=1, blocks=2).named_buffers()]
    assert all(torch.equal(a, b) for a, b in zip(rotations, again))


def test_hashing_reaches_across_the_image():
    """Without hashes a corner does not see the opposite one through attention; with them it can."""
    x = torch.zeros(1, 32, 32, 8)
    x[:, :4, :4] = x[:, 28:, 28:] = 1 + torch.randn(8).abs()  # two patches that look alike
    x = x + 0.01 * torch.randn(x.shape)
    pushed = x.clone()
    pushed[:, 28:, 28:] *= 1.01

    def moved(seed, buckets):
        attention = layer(seed, buckets=buckets)
        return bool((attention(pushed) - attention(x))[:, :4, :4].any())

    assert any(moved(seed, 64) for seed in range(4)) and not any(moved(seed, 0) for seed in range(4))


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: KNNAttention(8, 3), "3 heads for 8 channels"),
        (lambda: KNNAttention(8, 2, buckets=7), "buckets 7; .*even or 0"),
        (lambda: KNNAttention(8, 2, k=0), "k 0, .*1 or more"),
        (lambda: KNNAttention(8, 2)(torch.randn(1, 6, 8, 8)), "a map of 6 x 8; .*multiples of 4"),
        (lambda: KiT(down=5), "down 5, .*down 2, 3 or 4"),
        (lambda: KiT(skip="none"), "skip 'none'; .*concat or add"),
        (lambda: KiT(levels=0), "levels 0.*1 or more"),
    ],
)
def test_messages(call, words):
    with pytest.raises(ValueError, match=words):
        call()
