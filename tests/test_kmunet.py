"""KM-UNet against loops, against a UNet of plain convolutions, and through what is done to KAN layers."""

import pytest
import torch
import torch.nn.functional as F

from kunet import splines
from kunet.kan import KANConv2d, grids, prune
from kunet.models import KMUNet

TINY = {"channels": 2, "widths": (2, 3), "convs": 1, "grid_size": 4}


def tiny(**changes):
    torch.manual_seed(0)
    return KMUNet(**{**TINY, **changes}).eval()


def kan_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, KANConv2d)]


def looped(layer, x, padding):
    """The formula: the sum of every edge at every tap, each one spline; a pixel outside is 0, or ("bases") nothing."""
    (top, left), (kh, kw), (height, width) = layer.padding, layer.kernel_size, x.shape[2:]
    padded, there = (F.pad(t, (left, left, top, top)) for t in (x, torch.ones_like(x)))
    y = torch.zeros(1, layer.out_channels, height, width, dtype=x.dtype)
    for o in range(layer.out_channels):
        for i in range(layer.in_channels):
            for p in range(kh):
                for q in range(kw):
                    at = (0, i, slice(p, p + height), slice(q, q + width))
                    values = layer.edge(padded[at].flatten(), o, i, (p, q)).view(height, width)
                    y[0, o] += values if padding == "zeros" else values * there[at]
    return y


def by_hand(model, image, convolve):
    """A two-level KM-UNet written out; ``convolve(layer, x)`` is any way to compute one of its layers."""
    convs = [convolve_of(layer, convolve) for layer in kan_layers(model)]
    first, second = convs[:2]
    decoder, last = convs[-2:]
    top = first(2 * image - 1)
    deep = second(F.max_pool2d(top, 2))
    if len(convs) == 4:
        deep = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
    else:  # transposed: output pixel (2h + p, 2w + q) has its own functions, the channels 4 o + 2 p + q
        taps = convs[2](deep)
        deep = taps.new_zeros(1, taps.shape[1] // 4, 2 * taps.shape[2], 2 * taps.shape[3])
        for p in range(2):
            for q in range(2):
                deep[:, :, p::2, q::2] = taps[:, 2 * p + q :: 4]
    return last(decoder(torch.cat([top, deep], 1)))


def convolve_of(layer, convolve):
    return lambda x: convolve(layer, x)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"padding_mode": "bases"},
        {"outside": "zero", "up": "transposed"},
        {"base": "silu", "degree": 2},
    ],
)
def test_equals_loops(changes):
    """The whole network against one spline at a time; weights and image reach beyond the grid."""
    model = tiny(**changes).double()
    with torch.no_grad():
        for layer in kan_layers(model):
            layer.spline_weight.mul_(3)
        image = torch.empty(1, 2, 4, 6, dtype=torch.float64).uniform_(-0.3, 1.3)
        padding = changes.get("padding_mode", "zeros")
        expected = image + by_hand(model, image, lambda layer, x: looped(layer, x, padding))
        assert torch.allclose(model(image), expected, atol=1e-12)


@pytest.mark.parametrize("up", ["bilinear", "transposed"])
def test_linear_splines_make_it_a_unet_of_plain_convolutions(up):
    """Coefficients w xi_j (Greville abscissae xi_j) are the line w x: every layer is conv2d, none leaves its grid."""
    model, weights = tiny(up=up, grid_range=(-2.0, 2.0), outside="zero").double(), {}
    with torch.no_grad():
        for layer in kan_layers(model):
            w = torch.empty_like(layer.spline_weight[:, :, 0]).normal_()
            w /= w.abs().sum((1, 2, 3), keepdim=True)  # |y| <= max |x|: it stays on the grid
            layer.spline_weight.copy_(w[:, :, None] * splines.greville(layer.knots[0], 3)[:, None, None])
            weights[layer] = w
        image = torch.rand(1, 2, 8, 12, dtype=torch.float64)
        plain = by_hand(model, image, lambda layer, x: F.conv2d(x, weights[layer], padding=layer.padding))
        assert torch.allclose(model(image), image + plain, atol=1e-12)


def test_refining_every_layer_changes_nothing():
    model, image = tiny(widths=(3, 4, 5), convs=2, channels=3), torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        before = model(image)
        for layer in kan_layers(model):
            grids.refine(layer, 2 * layer.grid_size)
        after = model(image)
    assert all(layer.grid_size == 8 for layer in kan_layers(model))
    assert torch.allclose(after, before, atol=1e-5)


def test_masked_edges_give_exactly_nothing():
    """All edges from an input channel off: the network no longer sees that channel; all off in the head: y is x."""
    model = tiny()
    image, other = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8)
    other[:, 1] = image[:, 1]
    with torch.no_grad():
        added = [model(x) - x for x in (image, other)]
        assert not torch.allclose(*added)
        first = kan_layers(model)[0]
        keep = torch.ones_like(first.spline_weight[:, :, 0], dtype=torch.bool)
        keep[:, 0] = False
        prune.mask(first, keep)
        logits = [model.last(model.encoder[0](2 * x - 1)) for x in (image, other)]
        assert torch.equal(*logits)
        prune.mask(model.last, torch.zeros_like(model.last.spline_weight[:, :, 0], dtype=torch.bool))
        assert torch.equal(model(image), image)


@pytest.mark.parametrize("base", ["none", "silu"])
@pytest.mark.parametrize("up", ["bilinear", "transposed"])
def test_parameters(up, base):
    """(G + k) I O K^2 a layer, and one an edge more with a base; nothing else: no biases, no norms."""
    a, b, c, functions = 5, 6, 7, 4 + 2 + (base == "silu")
    model = KMUNet(3, (a, b, c), 2, grid_size=4, degree=2, up=up, base=base, normalise="layer")
    edges = 9 * (3 * a + a * a + a * b + b * b + b * c + c * c) + 3 * a
    if up == "bilinear":
        edges += 9 * ((c + b) * b + b * b + (b + a) * a + a * a)
    else:
        edges += 9 * (2 * b * b + b * b + 2 * a * a + a * a) + 4 * (c * b + b * a)
    assert sum(p.numel() for p in model.parameters()) == functions * edges
    assert any("base_weight" in name for name, _ in model.named_parameters()) == (base == "silu")
    assert not any("bias" in name for name, _ in model.named_parameters())


def test_no_activation_and_no_base_by_default():
    model = KMUNet()
    assert all(layer.base is None and layer.bias is None for layer in kan_layers(model))
    kinds = {type(m).__name__ for m in model.modules() if not list(m.children())}
    assert kinds == {"KANConv2d", "Identity", "MaxPool2d", "Upsample"}


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular", "bases"])
@pytest.mark.parametrize("up", ["bilinear", "transposed"])
def test_every_pixel_lies_in_the_footprint(padding_mode, up):
    """What is added to each pixel depends on that pixel, and on the deepest map; also where there is one pixel."""
    model = tiny(padding_mode=padding_mode, up=up, widths=(2, 3, 3)).double()
    for size in ((1, 1), (2, 5), (5, 3)):
        x = torch.rand(1, 2, *size, dtype=torch.float64, requires_grad=True)
        deep = []
        handle = model.encoder[-1].register_forward_hook(lambda m, i, output, deep=deep: deep.append(output))
        added = model(x) - x
        handle.remove()
        for h in range(size[0]):
            for w in range(size[1]):
                to_x, to_deep = torch.autograd.grad(added[0, :, h, w].sum(), (x, deep[0]), retain_graph=True)
                assert bool(to_x[0, :, h, w].any()) and bool(to_deep.any())


@pytest.mark.parametrize("normalise", ["none", "layer", "batch"])
def test_it_starts_on_the_grid_and_learns(normalise):
    """At the start few values are outside, whatever the depth; ten steps on one batch lower the error."""
    torch.manual_seed(0)
    model = KMUNet(3, (4, 6, 8), 1, normalise=normalise, grid_range=(-1.0, 1.0) if normalise == "none" else (-2.5, 2.5))
    clean = torch.rand(4, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    noisy = clean + 0.2 * torch.randn_like(clean)
    outside = []
    handles = [
        layer.register_forward_hook(lambda layer, inputs, output: outside.append(layer.outside_share(inputs[0])))
        for layer in kan_layers(model)[1:]
    ]
    model(noisy)
    for handle in handles:
        handle.remove()
    assert len(outside) == len(kan_layers(model)) - 1 and max(outside) < 0.05
    optimizer, errors = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(10):
        optimizer.zero_grad()
        error = F.mse_loss(model(noisy), clean)
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.9 * errors[0]


def test_the_control_is_a_unet_of_relus_and_plain_convolutions():
    """Set by hand: ReLU before each convolution but the first; as wide as sqrt(G + k) says, it is as large."""
    model = tiny(convolution="relu", outside="zero").double()
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert not kan_layers(model) and len(convs) == 4
    image = torch.rand(1, 2, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        top = convs[0](2 * image - 1)
        deep = F.interpolate(convs[1](F.max_pool2d(top, 2).relu()), scale_factor=2, mode="bilinear")
        expected = image + convs[3](convs[2](torch.cat([top, deep], 1).relu()).relu())
        assert torch.allclose(model(image), expected, atol=1e-12)
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert abs(count(KMUNet(widths=(11, 23, 45), convolution="relu")) / count(KMUNet(widths=(4, 8, 16))) - 1) < 0.05


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"widths": ()}, r"KMUNet: widths \(\)"),
        ({"convs": 0}, "0 convs"),
        ({"convolution": "plain"}, "convolution is 'plain'; choose one of kan, relu"),
        ({"base": "relu"}, "base is 'relu'; choose one of none, silu"),
        ({"up": "nearest"}, "up is 'nearest'; choose one of bilinear, transposed"),
        ({"normalise": "group"}, "normalise is 'group'; choose one of none, layer, batch"),
        ({"outside": "wrap"}, "outside is 'wrap'"),
        ({"padding_mode": "mirror"}, "padding_mode is 'mirror'"),
    ],
)
def test_messages(arguments, words):
    with pytest.raises(ValueError, match=words):
        KMUNet(**arguments)
