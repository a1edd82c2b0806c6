"""KBNet: kernel-basis attention against its definitions, its memory, the published sizes and costs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from kunet import recipes
from kunet.attention import KernelBasis, kernel_basis_attention
from kunet.denoise import Denoiser
from kunet.evaluate import evaluate
from kunet.models.kbnet import BlockS, ChannelAttention, KBNetL, KBNetS
from kunet.tiling import live_bytes
from kunet.train import train

SMALL_S = {"width": 8, "encoder": (1, 1), "middle": 1, "decoder": (1, 1), "bases": 4}
SMALL_L = {"width": 8, "depths": (1, 1), "heads": (1, 2), "refinement": 1, "bases": 4}


def inputs(batch=2, channels=8, group=4, bases=5, size=(6, 7)):
    """x, att, weight, bias in float64, all asking for gradients."""
    torch.manual_seed(0)
    shapes = (batch, channels, *size), (batch, bases, *size), (1, bases, channels * group * 9), (1, bases, channels)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def by_convolutions(x, att, weight, bias):
    """Equation by equation: N grouped convolutions, all held, then their weighted sum."""
    channels = x.shape[1]
    group = weight.shape[2] // (9 * channels)
    maps = [
        F.conv2d(x, w.view(channels // group, group, group, 3, 3).flatten(0, 1), b, padding=1, groups=channels // group)
        for w, b in zip(weight[0], bias[0])
    ]
    return (att[:, :, None] * torch.stack(maps, 1)).sum(1)


def by_pixels(x, att, weight, bias):
    """As published: mix a kernel for every pixel, apply it to the pixel's patch."""
    (batch, channels, height, width), bases = x.shape, att.shape[1]
    group = weight.shape[2] // (9 * channels)
    patches = F.unfold(x, 3, padding=1).view(batch, channels // group, group * 9, height, width)
    kernels = weight[0].view(bases, channels // group, group, group * 9)
    mixed = torch.einsum("bnyx,ngoi->bgoiyx", att, kernels)
    out = torch.einsum("bgoiyx,bgiyx->bgoyx", mixed, patches).flatten(1, 2)
    return out + torch.einsum("bnyx,nc->bcyx", att, bias[0])


@pytest.mark.parametrize("definition", [by_convolutions, by_pixels])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_equals_its_definitions_with_all_gradients(definition, group):
    leaves = inputs(group=group)
    results = []
    for f in (kernel_basis_attention, definition):
        out = f(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(kernel_basis_attention(*leaves), results[0][0]), "recomputation changes the forward pass"


def test_gradcheck():
    leaves = inputs(batch=1, channels=4, group=2, bases=3, size=(3, 4))
    assert torch.autograd.gradcheck(kernel_basis_attention, leaves)
    assert torch.autograd.gradgradcheck(kernel_basis_attention, leaves)


def test_attention_is_no_softmax():
    """Linear in att, so a pixel may take nothing, much, or the negative of a basis."""
    x, att, weight, bias = inputs()
    twice = kernel_basis_attention(x, -2 * att, weight, bias)
    torch.testing.assert_close(twice, -2 * kernel_basis_attention(x, att, weight, bias))


def test_a_pixel_sees_its_patch_and_its_group():
    x, att, weight, bias = inputs(batch=1)
    out = kernel_basis_attention(x, att, weight, bias)
    (seen,) = torch.autograd.grad(out[0, 5, 3, 3], x)
    wanted = torch.zeros(1, 8, 6, 7, dtype=torch.bool)
    wanted[:, 4:8, 2:5, 2:5] = True
    assert torch.equal(seen != 0, wanted)


def live_maps(f, bases, train):
    """The most memory that f and, to train, its backward pass touch at once, in maps of x's size."""
    leaves = inputs(channels=32, bases=bases, size=(64, 64))

    @torch.inference_mode(not train)  # live_bytes runs in inference mode
    @torch.set_grad_enabled(train)
    def run():
        out = f(*leaves)
        return torch.autograd.grad(out.sum(), leaves) if train else out

    return live_bytes(run) / (leaves[0].numel() * leaves[0].element_size())


@pytest.mark.parametrize("train,few", [(False, 4), (True, 7)])
def test_memory_does_not_grow_with_the_bases(train, few):
    """But for att itself and its gradient, of 32 channels as x has: one map each, and one while it is put together."""
    assert live_maps(kernel_basis_attention, 2, train) < few
    assert live_maps(kernel_basis_attention, 32, train) < few + 1 + 2 * train
    assert live_maps(by_convolutions, 32, train) > 60, "the measure sees no difference where there is one"


def peak(device, side, channels=64, bases=32):
    """Most bytes that live at once in a forward pass of the published network's first KernelBasis, beside x."""
    with torch.device(device):
        layer = KernelBasis(channels, bases, 4)
        x, att = torch.zeros(1, channels, side, side), torch.zeros(1, bases, side, side)
    return live_bytes(lambda: layer(x, att))


def test_a_tile_of_2k_is_served():
    """By shapes alone (torch's meta device counts the same bytes): a few maps, where mixed kernels take 36 and more."""
    assert peak("meta", 128) == peak("cpu", 128)
    map_ = 64 * 2048**2 * 4
    assert 2 * map_ < peak("meta", 2048) < 4 * map_ < 9 * 4 * map_ / 8
    more = peak("meta", 2048) - peak("meta", 2048, bases=1)
    assert more == pytest.approx(31 * map_ / 64, rel=0.01), "more bases cost more than their share of att"
    with torch.device("meta"):
        model, image = KBNetS().eval(), torch.empty(1, 3, 2048, 2048)
    assert live_bytes(lambda: model(image)) < 11e9  # 2.6 kB a pixel: the kernels of one block alone would take 39 GB


def test_bfloat16_autocast_reaches_the_gradients():
    leaves = [leaf.detach().float().requires_grad_() for leaf in inputs()]
    results = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = kernel_basis_attention(*leaves)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for high, low in zip(*results):
        assert float((low.float() - high).detach().norm() / high.detach().norm()) < 0.02


def conv(module, x, **more):
    return F.conv2d(x, module.weight, module.bias, **more)


def test_block_s_is_the_formula():
    """KBNet_s's block written out, its KBA in the published form, with scales that matter."""
    torch.manual_seed(0)
    block = BlockS(8, bases=5, group_channels=4, ffn=1.5, lightweight=False).double()
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(std=0.5)
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    norm = lambda n, x: F.layer_norm(x.movedim(1, 3), (8,), n.weight, n.bias, 1e-6).movedim(3, 1)
    m, y = block.mff, norm(block.norm1, x)
    sca = conv(m.sca[1], y.mean((2, 3), keepdim=True))
    x1 = conv(m.x1[1], conv(m.x1[0], y), padding=2, groups=2)
    uf = conv(m.uf[1], conv(m.uf[0], y), padding=1, groups=8)
    gated = conv(m.gated[0], y, padding=1, groups=8)
    att = conv(m.gated[2], gated[:, :4] * gated[:, 4:]) * m.attgamma + conv(m.linear, y)
    kba = by_pixels(uf, att, m.basis.w, m.basis.b)
    y = x + conv(m.out, (kba * m.ga1 + uf) * x1 * sca) * block.beta
    z = conv(block.ffn[0], norm(block.norm2, y))
    torch.testing.assert_close(block(x), y + conv(block.ffn[2], z[:, :6] * z[:, 6:]) * block.gamma)


def test_channel_attention_against_torch():
    torch.manual_seed(0)
    layer, x = ChannelAttention(8, heads=2).double(), torch.randn(2, 8, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.temperature.copy_(torch.tensor([0.5, 3.0]).view(2, 1, 1))
    q, k, v = layer.qkv(x).flatten(2).chunk(3, 1)
    heads = lambda t: t.unflatten(1, (2, 4))
    q, k = (heads(t) / heads(t).norm(dim=-1, keepdim=True) for t in (q, k))
    mixed = F.scaled_dot_product_attention(q * layer.temperature, k, heads(v), scale=1.0)
    torch.testing.assert_close(layer(x), layer.out(mixed.reshape(2, 8, 5, 6)))


@pytest.mark.parametrize(
    "make,count,convolutions,kba",
    [
        (KBNetS, 141_966_659, 68.7, 48.6),
        (lambda: KBNetS(lightweight=True, ffn=1.5), 128_403_395, 57.8, 48.6),
        (KBNetL, 29_568_100, 107.7, 88.6),
    ],
)
def test_published_sizes_and_costs(make, count, convolutions, kba):
    """Parameters exactly; GMACs at 256 x 256, KBA's as the published form spends them: mix kernel and bias, apply."""
    with torch.device("meta"):
        model, x = make(), torch.empty(1, 3, 256, 256)
    assert sum(p.numel() for p in model.parameters()) == count
    own = []
    for module in model.modules():
        if isinstance(module, KernelBasis):
            module.register_forward_hook(lambda m, i, out: own.append(out[0, 0].numel() * per_pixel(m)))
    per_pixel = lambda m: m.w[0].numel() + m.b[0].numel() + m.w.shape[2]
    with torch.no_grad(), FlopCounterMode(display=False, depth=99) as counter:
        model(x)
    counts = counter.get_flop_counts()
    conv_flops = lambda name: counts[name].get(torch.ops.aten.convolution, 0)
    plain = conv_flops("Global") - sum(conv_flops(name) for name in counts if name.endswith(".basis"))
    assert round(plain / 2e9, 1) == convolutions and round(sum(own) / 1e9, 1) == kba


@pytest.mark.parametrize("make", [lambda: KBNetS(**SMALL_S), lambda: KBNetL(**SMALL_L)])
def test_exports(make):
    model, x = make().eval(), torch.rand(1, 3, 33, 40)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("name,args", [("kbnet_s", SMALL_S), ("kbnet_l", SMALL_L)])
def test_through_trainer_tiler_and_evaluator(name, args, tmp_path):
    phases = [{"share": 1.0, "patch": 16, "batch": 2}]
    recipe = recipes.load("quick", {"model": name, "model_args": args, "steps": 3, "phases": phases, "warmup": 1})
    run = train(recipe, tmp_path / "run", progress=False)
    denoiser = Denoiser.load(str(run.folder / "weights.safetensors"), memory=1)  # the smallest tiles
    photo = np.random.default_rng(0).integers(0, 256, (700, 100, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo).save(tmp_path / "photos" / "one.png")
    assert denoiser.tile < 700
    (score,) = evaluate(denoiser, str(tmp_path / "photos"), progress=False)
    assert 10 < score.psnr < 20  # noise of sigma 50 alone is 14 dB


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: KernelBasis(6, group_channels=4), "groups of 4 channels out of 6"),
        (lambda: KBNetS(width=6, encoder=(1,), middle=0, decoder=(1,)), "6 channels, 6 inside.*multiple of 4 inside"),
        (lambda: KBNetS(encoder=(1, 1), decoder=(1,)), "2 encoder and 1 decoder levels"),
        (lambda: KBNetL(heads=(1, 2)), "4 depths and 2 heads"),
        (lambda: KBNetL(width=8, heads=(3, 1, 1, 1)), "3 heads for 8 channels"),
    ],
)
def test_messages(call, words):
    with pytest.raises(ValueError, match=words):
        call()
