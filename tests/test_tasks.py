"""The denoising task: levels, modes, repeatability."""

import pytest
import torch
from torch import nn

from kunet import tasks
from kunet.images import as_file
from kunet.tasks import Denoise


def test_levels_are_drawn_from_the_range_and_the_focus():
    task = Denoise(sigma=(10, 20), focus=50, focus_share=0.25)
    clean = torch.full((400, 3, 8, 8), 0.5)
    batch = task.batch(clean, torch.Generator().manual_seed(0))
    levels = batch.noise_level * 255
    at_focus = (levels - 50).abs() < 1e-3
    assert 0.15 < float(at_focus.float().mean()) < 0.35
    assert float(levels[~at_focus].min()) >= 10 and float(levels[~at_focus].max()) <= 20
    measured = (batch.input - clean).flatten(1).std(1)
    assert float((measured / batch.noise_level - 1).abs().mean()) < 0.1
    again = task.batch(clean, torch.Generator().manual_seed(0))
    assert torch.equal(batch.input, again.input)


def test_some_crops_go_through_a_file():
    batch = Denoise(sigma=(50, 50), u8_share=0.5).batch(torch.rand(200, 3, 8, 8), torch.Generator().manual_seed(0))
    through = torch.tensor([torch.allclose(x, as_file(x), atol=1e-6) for x in batch.input])
    assert 0.35 < float(through.float().mean()) < 0.65


def test_probe_is_the_same_every_time():
    clean = torch.rand(2, 3, 16, 16)
    one, other = (Denoise().probe(clean, seed=5) for _ in range(2))
    assert torch.equal(one.input, other.input)
    assert torch.allclose(one.noise_level * 255, torch.full((2,), 50.0))


def test_loss_and_score_agree_on_a_perfect_model():
    class Perfect(nn.Module):
        def forward(self, noisy, level):
            return clean

    clean = as_file(torch.rand(2, 3, 16, 16))
    batch = Denoise().probe(clean, seed=0)
    assert bool(Denoise().score(Perfect(), batch).isinf().all())
    assert float(Denoise().loss(Perfect(), batch)) < -18


@pytest.mark.parametrize(
    "args,words",
    [
        ({"sigma": [60, 50]}, "lowest first"),
        ({"sigma": [0, 300]}, "0..255"),
        ({"sigma": [50]}, "sigma"),
        ({"focus": 400}, "0..255"),
        ({"focus_share": 1.5}, "shares lie in 0..1"),
        ({"colour": "blue"}, "do not fit denoise"),
    ],
)
def test_messages(args, words):
    with pytest.raises(ValueError, match=words):
        tasks.make("denoise", args)
    with pytest.raises(ValueError, match="no task 'dance'"):
        tasks.make("dance", {})
