"""The published baselines are the published ones: parameters, cost, what a pixel sees, their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from kunet.models import DnCNN, FFDNet, NAFNet
from kunet.models.nafnet import NAFBlock

PUBLISHED = [
    (DnCNN, {}, 669_379, 0.67, 667),
    (DnCNN, {"norm": False}, 668_227, 0.67, 667),
    (DnCNN, {"channels": 1, "depth": 17, "norm": False}, 555_137, 0.56, None),  # DnCNN-S, gray
    (FFDNet, {}, 852_108, 0.85, 213),
    (FFDNet, {"channels": 1, "width": 64, "depth": 15}, 485_316, 0.49, None),
    (NAFNet, {}, 29_159_715, 29.16, 245),  # "16 GMACs" at 256 x 256
    (NAFNet, {"encoder": (1, 1, 1, 28), "middle": 1, "decoder": (1, 1, 1, 1)}, 17_111_907, 17.11, None),  # deblurring
    (NAFNet, {"width": 64}, 115_982_915, 115.98, None),
    (NAFNet, {"width": 16}, 7_371_923, 7.37, None),
]


@pytest.mark.parametrize("model,args,parameters,millions,gmac", PUBLISHED)
def test_published_counts(model, args, parameters, millions, gmac):
    """Parameters, as millions to two places they are the papers'; multiply-adds a megapixel, in 10^9."""
    with torch.device("meta"):
        network = model(**args)
        assert sum(p.numel() for p in network.parameters()) == parameters
        assert round(parameters / 1e6, 2) == millions
        if gmac:
            with FlopCounterMode(display=False) as counter:
                network(torch.zeros(1, 3, 256, 256))
            assert round(counter.get_total_flops() / 2 / 256**2 / 1e3) == gmac


@pytest.mark.parametrize(
    "model,size,first",
    [(DnCNN(width=4), 41, (12, 10)), (FFDNet(width=4), 50, (8, 6)), (FFDNet(width=4, depth=15), 62, (2, 0))],
)
def test_what_a_pixel_sees(model, size, first):
    """DnCNN-B sees 41 x 41, as its paper says; FFDNet 50 x 50 (62 x 62 with gray's 15 layers), in 2 x 2 blocks."""
    with torch.no_grad():
        for p in model.double().parameters():
            p.abs_()  # every ReLU open, nothing cancels
    x = torch.rand(1, 3, 66, 62, dtype=torch.float64, requires_grad=True)
    model.eval()(x, 0.1)[..., 32, 30].sum().backward()
    wanted = torch.zeros(66, 62, dtype=torch.bool)
    wanted[first[0] : first[0] + size, first[1] : first[1] + size] = True
    assert torch.equal(x.grad.ne(0).any(1)[0], wanted)


def test_dncnn_folds_into_its_form_without_normalisation():
    torch.manual_seed(0)
    trained, folded = DnCNN(width=8, depth=5), DnCNN(width=8, depth=5, norm=False)
    for _ in range(3):
        trained(torch.rand(2, 3, 24, 24))  # running means and variances
    with torch.no_grad():
        for norm in (m for m in trained.body if isinstance(m, torch.nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        plain = [m for m in folded.body if isinstance(m, torch.nn.Conv2d)]
        for i, conv in enumerate(m for m in trained.body if isinstance(m, torch.nn.Conv2d)):
            weight, bias = conv.weight, conv.bias
            if i:
                norm = trained.body[3 * i]
                weight, bias = fuse_conv_bn_weights(
                    weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
            plain[i].weight.copy_(weight)
            plain[i].bias.copy_(bias)
        folded.last.load_state_dict(trained.last.state_dict())
        x = torch.rand(1, 3, 20, 31)
        assert torch.allclose(folded(x), trained.eval()(x), atol=1e-5)


def test_ffdnet_is_told_the_level_of_each_image_and_can_return_its_output():
    torch.manual_seed(0)
    model, x = FFDNet(width=8, depth=3), torch.rand(2, 3, 9, 12)
    state = model.state_dict()
    with torch.no_grad():
        y = F.pad(x, (0, 0, 0, 1), mode="reflect")
        y = torch.cat([y[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        y = y.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2)  # channel by channel, each with its four places
        y = torch.cat([y, torch.tensor([0.1, 0.3])[:, None, None, None].expand(2, 1, 5, 6)], 1)
        for i in range(2):
            y = F.conv2d(y, state[f"body.{i}.0.weight"], state[f"body.{i}.0.bias"], padding=1).relu()
        y = F.pixel_shuffle(F.conv2d(y, state["last.weight"], state["last.bias"], padding=1), 2)[:, :, :9]
        assert torch.allclose(model(x, torch.tensor([0.1, 0.3])), x + y, atol=1e-6)
        plain = FFDNet(width=8, depth=3, residual=False)
        plain.load_state_dict(state)
        assert torch.allclose(plain(x, torch.tensor([0.1, 0.3])), y, atol=1e-6)


def test_nafblock_is_its_formula():
    torch.manual_seed(0)
    block, x = NAFBlock(4).double(), torch.rand(2, 4, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        for p in block.parameters():
            p.normal_()
        norm = lambda layer, x: (
            (x - x.mean(1, keepdim=True))
            / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
            * layer.weight[:, None, None]
            + layer.bias[:, None, None]
        )
        across = lambda layer, x: torch.einsum("oi,bihw->bohw", layer.weight[..., 0, 0], x) + layer.bias[:, None, None]
        y = across(block.spatial[1], norm(block.spatial[0], x))
        kernel, padded = block.spatial[2].weight[:, 0], F.pad(y, (1, 1, 1, 1))
        y = sum(kernel[:, i, j, None, None] * padded[:, :, i : i + 5, j : j + 6] for i in range(3) for j in range(3))
        y = y + block.spatial[2].bias[:, None, None]
        y = y[:, :4] * y[:, 4:]
        y = across(block.mix, y * across(block.attention, y.mean((2, 3), keepdim=True)))
        y = x + block.beta * y
        z = across(block.feed[1], norm(block.feed[0], y))
        z = across(block.feed[3], z[:, :4] * z[:, 4:])
        assert torch.allclose(block(x), y + block.gamma * z, atol=1e-12)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: DnCNN(depth=1), "DnCNN: depth is 1"),
        (lambda: FFDNet(depth=0), "FFDNet: depth is 0"),
        (lambda: NAFNet(encoder=(1, 1), decoder=(1,)), "2 encoder and 1 decoder levels"),
    ],
)
def test_messages(call, words):
    with pytest.raises(ValueError, match=words):
        call()
