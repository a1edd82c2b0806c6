"""Recomputing changes what a training holds in memory, and nothing else."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_models import SMALL
from torch import nn

from kunet.models import MODELS
from kunet.models.recompute import recompute
from kunet.tiling import _Live

NAMES = sorted(name for name, model in MODELS.items() if hasattr(model, "recomputed"))
DEEP = {  # several blocks a level, as the networks that need it have, where the small ones have one
    "kunet_compact": {"depths": (2, 2, 2)},
    "nafnet": {"encoder": (2, 2), "middle": 2, "decoder": (2, 2)},
    "kbnet_s": {"encoder": (2, 2), "middle": 2, "decoder": (2, 2), "bases": 2},
    "kbnet_l": {"depths": (2, 2), "refinement": 2, "bases": 2},
    "kit": {"blocks": 2},
    # the kernels of KAN convolutions recompute by themselves: little is left to save
    "kmunet": {"convs": 3, "normalise": "batch", "convolution": "relu"},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Such small networks are no faster with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def both(name, **changes):
    """A small network and its copy, which recomputes, in training."""
    torch.manual_seed(0)
    plain = MODELS[name](**{**SMALL[name], **changes}).train()
    again = copy.deepcopy(plain)
    recompute(again)
    return plain, again


def step(model, run=None, seed=1, size=32):
    """Loss and gradients of one step; dropout from the seed."""
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(seed)
    model.zero_grad()
    loss = ((model if run is None else run)(x, 0.2) - x).abs().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def same(one, other) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def state(model):
    return list(model.state_dict().values())


def test_which_models_have_blocks():
    assert set(MODELS) - set(NAMES) == {"dncnn", "ffdnet"}
    for name in ("dncnn", "ffdnet"):
        with pytest.raises(ValueError, match="has no blocks to recompute"):
            recompute(MODELS[name](**SMALL[name]))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_training_bit_for_bit(name):
    plain, again = both(name)
    assert list(plain.state_dict()) == list(again.state_dict())
    for seed in (1, 2):  # running statistics of the first step are in the second
        assert same(step(plain, seed=seed), step(again, seed=seed)) and same(state(plain), state(again))
    plain.eval(), again.eval()
    assert same(step(plain), step(again))


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_less_memory(name):
    peaks = []
    for model in both(name, **DEEP.get(name, {})):
        with _Live() as live:
            step(model, size=64)
        peaks.append(live.peak)
    assert peaks[1] < 0.75 * peaks[0], peaks


def test_batch_norm_sees_a_batch_once():
    for plain, again in (both("ukan"), both("kmunet", normalise="batch")):
        norms = [m for m in again.modules() if isinstance(m, nn.BatchNorm2d)]
        buffers = [norm.running_mean for norm in norms]
        step(plain), step(again)
        assert norms and same(state(plain), state(again)) and all(norm.num_batches_tracked == 1 for norm in norms)
        assert all(norm.running_mean is buffer and buffer.any() for norm, buffer in zip(norms, buffers))


def test_dropout_is_the_same_twice():
    plain, again = both("kunet", dropout=0.5)
    steps = [step(again, seed=seed) for seed in (1, 2)]
    assert not same(*steps) and all(same(one, step(plain, seed=seed)) for seed, one in zip((1, 2), steps))
    step(plain), (expected := torch.rand(3)), step(again)
    assert torch.equal(expected, torch.rand(3))  # the recomputation leaves the generator where it was


def test_blocks_run_again_in_training_alone():
    _, again = both("nafnet")
    calls = []
    again.middle[0].mix.register_forward_hook(lambda *arguments: calls.append(1))
    x = torch.rand(1, 3, 16, 16)
    for count, run in (
        (2, lambda: again(x).sum().backward()),
        (1, lambda: torch.no_grad()(again)(x)),
        (1, lambda: again.eval()(x).sum().backward()),
    ):
        calls.clear()
        run()
        assert len(calls) == count


def test_a_copy_recomputes_with_its_own_weights():
    plain, again = both("ukan")
    copied = copy.deepcopy(again)
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    assert same(step(plain), step(copied)) and same(state(plain), state(copied))
    assert all(p.grad is None for p in again.parameters())
    recompute(copied)  # a second time: as once
    assert same(step(plain), step(copied))


def test_low_precision_and_channels_last():
    plain, again = (model.to(memory_format=torch.channels_last) for model in both("kunet_compact"))
    with torch.autocast("cpu", torch.bfloat16):
        assert same(step(plain), step(again))


COMPILE = """
import sys
import torch
from test_recompute import both, state, step
torch.set_num_threads(1)
for name, changes in (("kmunet", {"normalise": "batch"}), ("kbnet_s", {"bases": 2})):
    plain, again = both(name, **changes)
    run = torch.compile(again, backend="aot_eager", fullgraph=True, dynamic=False)
    for one, other in zip((*step(plain), *state(plain)), (*step(again, run), *state(again))):
        assert torch.allclose(one, other, atol=1e-5), name
"""


def test_it_can_be_compiled():
    """Batch normalisation, and blocks that recompute parts of themselves; in a process without shape checks."""
    words = [sys.executable, "-c", COMPILE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr[-3000:]
