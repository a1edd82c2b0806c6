"""Processes that train together keep one grid: two of them, over gloo."""

import subprocess
import sys

import torch

from kunet import distributed

SCRIPT = """
import sys, torch, torch.distributed as dist
from kunet.kan import KANLinear, grids
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
layer = KANLinear(3, 2)
torch.manual_seed(rank)
grids.adapt(layer, torch.randn(500, 3) + rank)
torch.save({"knots": layer.knots, "weight": layer.spline_weight.detach()}, sys.argv[3])
dist.destroy_process_group()
"""


def test_alone_it_is_the_tensor():
    x = torch.randn(3)
    assert distributed.mean(x) is x


def test_two_ranks_adapt_to_the_same_grid(tmp_path):
    files = [tmp_path / f"{rank}.pt" for rank in (0, 1)]
    words = lambda rank: [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "store"), str(files[rank])]
    processes = [subprocess.Popen(words(rank)) for rank in (0, 1)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    one, other = (torch.load(file, weights_only=True) for file in files)
    assert torch.equal(one["knots"], other["knots"]) and torch.equal(one["weight"], other["weight"])
    assert 0.2 < float(one["knots"].mean()) < 0.8  # between the data of rank 0 and those of rank 1
