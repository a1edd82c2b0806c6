"""U-KAN: its published size, its parts by hand, and a control that changes the network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kunet.kan import KANLinear
from kunet.models import UKAN

SMALL = {"dims": (16, 20, 24)}


def small(**changes):
    torch.manual_seed(0)
    return UKAN(**{**SMALL, **changes}).eval()


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dims,total", [((128, 160, 256), 6_356_689), ((256, 320, 512), 25_359_265)])
def test_published_counts(dims, total):
    with torch.device("meta"):
        model, control = UKAN(dims=dims), UKAN(dims=dims, projection="mlp")
    layers = [layer for layer in model.modules() if isinstance(layer, KANLinear)]
    assert count(model) == total
    assert [layer.in_features for layer in layers] == [n for n in (*dims[1:], *dims[1::-1]) for _ in range(3)]
    assert sum(count(layer) for layer in layers) == 30 * (2 * dims[1] ** 2 + dims[2] ** 2 + dims[0] ** 2)
    # 10 numbers an edge against 1, and a linear layer's biases
    assert count(control) == total - 27 * (2 * dims[1] ** 2 + dims[2] ** 2 + dims[0] ** 2) + 3 * sum(
        (*dims[1:], *dims[1::-1])
    )


def test_the_control_is_another_network():
    """What the published switch leaves undone: no KAN layer left, and with equal weights elsewhere another answer."""
    model, control = small().train(), small(projection="mlp").train()
    assert not any(isinstance(m, KANLinear) for m in control.modules())
    assert sum(isinstance(m, nn.Linear) for m in control.modules()) == 12
    missing, unexpected = control.load_state_dict(model.state_dict(), strict=False)
    assert all("project" in key for key in (*missing, *unexpected)) and missing
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert float((model(x) - control(x)).abs().max()) > 0.01


def by_hand(s, x):
    """The network written out from the paper, functional; its ``project`` layers are called as modules."""

    def conv(name, x, groups=1):
        x = F.conv2d(x, s[f"{name}.0.weight"], s[f"{name}.0.bias"], padding=1, groups=groups)
        mean, var = s[f"{name}.1.running_mean"], s[f"{name}.1.running_var"]
        return F.batch_norm(x, mean, var, s[f"{name}.1.weight"], s[f"{name}.1.bias"]).relu()

    def norm(name, x):
        w, b = s[f"{name}.weight"], s[f"{name}.bias"]
        return F.layer_norm(x.permute(0, 2, 3, 1), w.shape, w, b).permute(0, 3, 1, 2)

    def block(name, x, projections):
        y = norm(f"{name}.norm", x)
        for i, project in enumerate(projections):
            rows = y.permute(0, 2, 3, 1).flatten(0, 2)
            y = project(rows).view(len(y), *y.shape[2:], -1).permute(0, 3, 1, 2)
            y = conv(f"{name}.mix.{i}", y, groups=y.shape[1])
        return x + y

    def up(name, x):
        x = conv(f"{name}.1", conv(f"{name}.0", x))
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    def run(projections):
        kept, y = [], x
        for i in range(3):
            y = F.max_pool2d(conv(f"encoder.{i}.1", conv(f"encoder.{i}.0", y)), 2)
            kept.append(y)
        for i in (3, 4):
            y = F.conv2d(y, s[f"encoder.{i}.0.weight"], s[f"encoder.{i}.0.bias"], stride=2, padding=1)
            y = norm(f"encoder.{i}.3", block(f"encoder.{i}.2", norm(f"encoder.{i}.1", y), projections[i - 3]))
            kept.append(y)
        y = norm("tokens.0.1", block("tokens.0.0", up("decoder.0", y) + kept[3], projections[2]))
        y = norm("tokens.1.1", block("tokens.1.0", up("decoder.1", y) + kept[2], projections[3]))
        y = up("decoder.2", y) + kept[1]
        y = up("decoder.3", y) + kept[0]
        return F.conv2d(up("decoder.4", y), s["last.weight"], s["last.bias"])

    return run


@pytest.mark.parametrize("projection", ["kan", "mlp"])
def test_equals_the_paper_written_out(projection):
    model = small(projection=projection, classes=2).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.running_mean, module.running_var, module.weight, module.bias):
                    value.uniform_(0.5, 1.5)
        projections = [b.project for b in (model.encoder[3][2], model.encoder[4][2], *(t[0] for t in model.tokens))]
        x = torch.rand(2, 3, 64, 96, dtype=torch.float64)
        assert torch.allclose(model(x), by_hand(model.state_dict(), x)(projections), atol=1e-10)


def test_it_learns_to_segment():
    """Twenty steps on a square against its background."""
    torch.manual_seed(0)
    model, x, mask = UKAN(**SMALL), torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    mask[:, :, 16:48, 16:48] = 1
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(x + 0.5 * mask), mask)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_it_can_return_its_output():
    model, plain = small(classes=None), small(classes=None, residual=False)
    plain.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 40, 70)
    with torch.no_grad():
        assert torch.equal(model(x), x + plain(x))


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"dims": (16, 20)}, r"UKAN: dims \(16, 20\); give three"),
        ({"dims": (12, 20, 24)}, "the first a multiple of 8"),
        ({"projection": "linear"}, "projection is 'linear'"),
    ],
)
def test_messages(arguments, words):
    with pytest.raises(ValueError, match=words):
        UKAN(**arguments)
