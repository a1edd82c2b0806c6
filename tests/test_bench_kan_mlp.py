"""The benchmark of KAN against MLP is fair by its own rules: equal costs, separate splits, documented results."""

import importlib.util
import json

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from kunet.data import bundled
from kunet.images import to_tensor, unit
from kunet.kan import KANLinear

spec = importlib.util.spec_from_file_location("bench_kan_mlp", ROOT / "benchmarks" / "kan_mlp.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.fixture(scope="module")
def tasks():
    return {name: make() for name, make in bench.TASKS.items()}


@pytest.mark.parametrize("name", bench.TASKS)
def test_costs_are_equal_within_two_percent(tasks, name):
    task = tasks[name]
    sizes = bench.all_sizes(task)
    assert len({len(s) for s in sizes.values()}) == 1
    for peer, cost in (("mlp_params", bench.parameters), ("mlp_flops", bench.multiply_adds)):
        assert cost(peer, sizes[peer], task) == pytest.approx(cost("kan", sizes["kan"], task), rel=0.02)


@pytest.mark.parametrize("name", bench.TASKS)
@pytest.mark.parametrize("peer", ["mlp_params", "mlp_flops"])
def test_multiply_adds_of_an_mlp_are_those_that_torch_counts(tasks, name, peer):
    sizes = bench.all_sizes(tasks[name])[peer]
    with FlopCounterMode(display=False) as counter:
        bench.network(peer, sizes, tasks[name])(torch.zeros(1, sizes[0]))
    assert 2 * bench.multiply_adds(peer, sizes, tasks[name]) == counter.get_total_flops()


def test_costs_of_a_kan_by_hand(tasks):
    """[4, 16, 16, 1]: 336 edges of 8 + 1 numbers; 3 + 2 multiply-adds an edge and 4 cubics and a scaling an input."""
    sizes = bench.all_sizes(tasks["composed"])["kan"]
    assert sizes == [4, 16, 16, 1]
    assert bench.parameters("kan", sizes, tasks["composed"]) == 336 * 9
    assert bench.multiply_adds("kan", sizes, tasks["composed"]) == 336 * 5 + 36 * 13
    layer = bench.network("kan", sizes, tasks["composed"])[1]
    assert isinstance(layer, KANLinear)
    used = (layer.bases(torch.linspace(-1.9, 1.9, 97)[:, None].expand(-1, 16)) != 0).sum(2)
    assert int(used.max()) == 4  # of 8: what the local form computes


@pytest.mark.parametrize("name", bench.TASKS)
def test_tasks_are_the_same_each_time_and_their_splits_are_disjoint(tasks, name):
    task, again = tasks[name], bench.TASKS[name]()
    seen = set()
    for split in ("train", "validation", "test"):
        x, y = getattr(task, split)
        assert len(x) == len(y)
        assert torch.equal(x, getattr(again, split)[0]) and torch.equal(y, getattr(again, split)[1])
        rows = {row.tobytes() for row in x.numpy()}
        assert len(rows) == len(x) and not rows & seen
        seen |= rows


def test_functions_are_as_documented(tasks):
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0]])
    torch.testing.assert_close(bench.composed(x)[:, 0], torch.exp(torch.tensor([1.0, 0.0, 0.0])), atol=1e-6, rtol=0)
    for name in ("composed", "rotated"):
        y = tasks[name].train[1]
        assert float(y.mean()) == pytest.approx(0, abs=1e-4) and float(y.std()) == pytest.approx(1, abs=1e-4)
        assert float(tasks[name].test[1].var()) == pytest.approx(1, abs=0.05)  # the score's variance
    third = bench.rotated(torch.randn(20000, 6, generator=torch.Generator().manual_seed(0)))
    assert float(third.var()) == pytest.approx(1 + 1 - 2 / torch.pi, rel=0.25)  # of g1 + |g2|, both of variance 1


def test_patches_come_from_their_own_photos(tasks):
    """Validation from the lowest fifth of the training photos, test from the held-out ones; sigma is what it says."""
    count = lambda photos, rows: sum((rows(p) // 8) * (p.shape[1] // 8) for p in photos)
    train, heldout = (list(bundled(split).values()) for split in ("train", "heldout"))
    task = tasks["patches"]
    assert len(task.validation[0]) == count(train, lambda p: p.shape[0] - p.shape[0] * 4 // 5)
    assert len(task.test[0]) == count(heldout, lambda p: p.shape[0])
    below = train[0].shape[0] * 4 // 5
    corners = {"train": train[0], "validation": train[0][below:], "test": heldout[0]}
    for split, corner in corners.items():
        first = to_tensor(corner[:8, :8]).mean(0).flatten()
        noisy, clean = (part[0] * unit(bench.SIGMA) for part in getattr(task, split))
        torch.testing.assert_close(clean - clean.mean(), first - first.mean(), atol=1e-5, rtol=0)
        assert float(noisy.mean()) == pytest.approx(0, abs=1e-5)
    count = lambda photos, rows: sum(((rows(p) - 8) // 2 + 1) * ((p.shape[1] - 8) // 2 + 1) for p in photos)
    assert len(task.train[0]) == count(train, lambda p: p.shape[0] * 4 // 5)
    assert float((task.test[0] - task.test[1]).std()) == pytest.approx(1, abs=0.01)


def test_a_score_is_the_psnr_that_the_package_computes(tasks):
    from kunet.metrics import psnr

    task, give_back = tasks["patches"], torch.nn.Identity()
    noisy, clean = (part[None, None] * unit(bench.SIGMA) for part in task.test)
    assert bench.scored(give_back, task, task.test) == pytest.approx(float(psnr(noisy, clean)), abs=1e-3)


def test_training_is_deterministic(tasks):
    task = tasks["composed"]
    run = lambda seed: bench.trained("kan", [4, 16, 16, 1], task, 0.01, seed, 3)[0].state_dict()
    one, same, other = run(0), run(0), run(1)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["0.spline_weight"], other["0.spline_weight"])


def test_a_small_run_writes_what_is_documented(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "POINTS", 1024)
    out = tmp_path / "results.json"
    bench.main(["--steps", "2", "--tasks", "composed", "rotated", "--out", str(out)])
    results = json.loads(out.read_text())
    assert {"command", "commit", "machine", "date", "steps", "batch", "seeds", "unit", "counted"} <= set(results)
    assert results["command"] == "python benchmarks/kan_mlp.py --steps 2 --tasks composed rotated"
    assert "patches" not in results
    for name in ("composed", "rotated"):
        task = results[name]
        for model in ("kan", "mlp_params", "mlp_flops"):
            row = task[model]
            assert row["lr"] == task["learning_rates"][row["validation"].index(max(row["validation"]))]
            assert len(row["scores"]) == 3 and row["seconds"] > 0 and row["std"] >= 0
            assert row["mean"] == pytest.approx(sum(row["scores"]) / 3, abs=1e-3)
            assert row["parameters"] > 0 and row["multiply_adds"] > 0 and len(row["sizes"]) == 4
        for peer in ("mlp_params", "mlp_flops"):
            pairs = [a - b for a, b in zip(task["kan"]["scores"], task[peer]["scores"])]
            assert task[f"kan_minus_{peer}"]["scores"] == pytest.approx(pairs, abs=2e-3)
        assert task["equal_time"]["steps"] >= 1 and {"mean", "std", "seconds", "kan_minus"} <= set(task["equal_time"])


@pytest.mark.parametrize("words", [["--steps", "2"], ["--tasks", "composed"], ["--steps", "0", "--out", "a.json"]])
def test_a_part_does_not_overwrite_the_results(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(words)
    assert "another --out" in capsys.readouterr().err
