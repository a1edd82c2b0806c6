"""Muon: against torch's for matrices, its orthogonalisation, what it leaves to AdamW, and what a checkpoint holds."""

import pytest
import torch
from torch import nn

from kunet.train.muon import Muon, orthogonalise


def steps(optimizer, weight: nn.Parameter, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_a_matrix_moves_as_with_torch(shape):
    start, args = torch.randn(shape), {"lr": 0.01, "weight_decay": 0.1}
    theirs, ours = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    known = torch.optim.Muon([theirs], **args, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    expected = steps(known, theirs, 7)
    found = steps(Muon([ours], **args, dtype=torch.bfloat16), ours, 7)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # both in bfloat16
    assert (expected - start).abs().mean() > 0.005


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 4, 32), (2, 32, 4)])
def test_singular_values_become_about_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices)
    inner = left.mT @ result @ right.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(inner, torch.diag_embed(values), rtol=0, atol=1e-4)


def test_a_step_is_a_fifth_of_the_rate_long():
    weight = nn.Parameter(torch.zeros(64, 32, 3, 3))
    steps(Muon([weight], lr=0.01, weight_decay=0), weight, 1)
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.2)


def test_what_mixes_no_features_is_left_to_adamw():
    shapes = {"bias": (8,), "depthwise": (8, 1, 3, 3), "scale of a channel": (1, 8, 1, 1)}
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes.values()] for _ in range(2))
    for parameters, optimizer in ((ours, Muon(ours)), (theirs, torch.optim.AdamW(theirs, betas=(0.9, 0.95)))):
        for parameter in parameters:
            parameter.grad = torch.full(parameter.shape, 0.3)
        optimizer.param_groups[0]["weight_decay"] = 0
        optimizer.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_loaded_state_goes_on_as_if_never_stopped(layout):
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 3, 1)).to(memory_format=layout)

    def train(model, optimizer, first, last):
        for i in range(first, last):
            x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i))
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = net()
    train(whole, Muon(whole.parameters()), 0, 6)
    half = net()
    before = Muon(half.parameters())
    train(half, before, 0, 3)
    other = net()
    other.load_state_dict(half.state_dict())
    after = Muon(other.parameters())
    after.load_state_dict(before.state_dict())
    train(other, after, 3, 6)
    for expected, found in zip(whole.parameters(), other.parameters()):
        assert torch.equal(expected, found)


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="takes no closure"):
        Muon([nn.Parameter(torch.ones(2, 2))]).step(lambda: 0.0)
