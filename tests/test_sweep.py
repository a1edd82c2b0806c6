"""Sweeps: the file is read as W&B reads it, workers share the trials, a killed one loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest
import yaml
from conftest import ROOT
from optuna.distributions import FloatDistribution, IntDistribution
from test_train import FEW

from kunet import recipes, sweep
from kunet.cli.verbs import _fields
from kunet.runs import Run
from kunet.sweep import journal, workers

SPACE = ROOT / "slurm" / "sweep.yaml"
METRIC = {"name": "psnr", "goal": "maximize"}
TINY = FEW | {"steps": 4, "save_every": 2, "threads": 1}
ONE_CROP = TINY | {"phases": [{"share": 1.0, "patch": 16, "batch": 1}]}


@pytest.fixture
def space(tmp_path):
    """Write a sweep file; its path."""

    def write(parameters, method="random", metric=METRIC, **more):
        path = tmp_path / "space.yaml"
        path.write_text(
            yaml.safe_dump({"method": method, "metric": metric, "parameters": parameters} | more, sort_keys=False)
        )
        return path

    return write


def numbers(folder):
    return [row["number"] for row in sweep.results(folder)["trials"]]


# the file


@pytest.mark.parametrize(
    "given,expected",
    [
        ({"min": 1, "max": 9}, IntDistribution(1, 9)),
        ({"min": 0.1, "max": 9}, FloatDistribution(0.1, 9)),
        ({"min": 1, "max": 9, "distribution": "uniform"}, FloatDistribution(1, 9)),
        ({"min": 1, "max": 9, "distribution": "int_uniform"}, IntDistribution(1, 9)),
        ({"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"}, FloatDistribution(1e-4, 1e-2, log=True)),
        ({"min": 10, "max": 50, "q": 10, "distribution": "q_uniform"}, IntDistribution(10, 50, step=10)),
        ({"min": 0.1, "max": 0.3, "q": 0.1, "distribution": "q_uniform"}, FloatDistribution(0.1, 0.3, step=0.1)),
        ({"min": 1, "max": 3, "distribution": "q_uniform"}, IntDistribution(1, 3)),
    ],
)
def test_ranges(space, given, expected):
    assert sweep.read(space({"x": given})).searched == {"x": expected}


def test_lists_and_fixed_values(space):
    """Listed values come back as they were written, mappings and lists too."""
    listed = [0, 1.5, "text", True, None, {"widths": [4, 8]}]
    read = sweep.read(
        space({"x": {"values": listed}, "y": {"value": 3}, "z": {"distribution": "constant", "value": 4}})
    )
    choices = read.searched["x"].choices
    assert [read.values({"x": choice})["x"] for choice in choices] == listed
    assert read.fixed == {"y": 3, "z": 4} and read.values({"x": choices[1]}) == {"x": 1.5, "y": 3, "z": 4}


def test_a_grid(space):
    steps = {"min": 0.1, "max": 0.3, "q": 0.1, "distribution": "q_uniform"}
    read = sweep.read(space({"a": {"values": ["u", "v"]}, "b": {"min": 1, "max": 2}, "c": steps}, "grid"))
    points = [read.values(read.point(i)) for i in range(read.size())]
    assert len(points) == 12 == len({json.dumps(point) for point in points})
    assert points[0] == {"a": "u", "b": 1, "c": 0.1} and points[-1] == {"a": "v", "b": 2, "c": 0.3}


@pytest.mark.parametrize(
    "given,words",
    [
        ({"min": 3, "max": 3}, "min is 3, max is 3; min must be below max"),
        ({"min": 2.0, "max": 1.0}, "min must be below max"),
        ({"min": 1}, "uniform takes min, max; got min"),
        ({"min": "1e-4", "max": 1}, "min is '1e-4'; .* write 1.0e-4"),
        ({"min": True, "max": 2.0}, "min is True; it must be a number"),
        ({"min": 0.0, "max": float("inf")}, "max is inf"),
        ({"min": 0.5, "max": 2, "distribution": "int_uniform"}, "min is 0.5; it must be a whole number"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "min is 0; log_uniform_values needs one above 0"),
        ({"min": 0, "max": 1, "q": 0.3, "distribution": "q_uniform"}, "q is 0.3; it must divide 0 to 1"),
        ({"min": 0, "max": 1, "q": 0, "distribution": "q_uniform"}, "q is 0; "),
        ({"min": 0, "max": 1, "distribution": "normal"}, "distribution is 'normal'; it must be one of constant, "),
        ({"mu": 0, "sigma": 1}, "no key 'mu'"),
        ({"values": []}, r"values is \[\]; it must be a list of one or more"),
        ({"values": "abc"}, "values is 'abc'"),
        ({"values": [1], "min": 0}, "categorical takes values; got min, values"),
        ({"parameters": {"y": {"value": 1}}}, "no key 'parameters'"),
        ([1, 2], r"is \[1, 2\]; it must be a mapping of distribution, value"),
    ],
)
def test_wrong_parameters(space, given, words):
    with pytest.raises(ValueError, match=f"space.yaml: parameters: x: .*{words}") as caught:
        sweep.read(space({"x": given}))
    assert "\n" not in str(caught.value)


def test_wrong_files(space, tmp_path):
    ok = {"lr": {"value": 0.1}}
    for path, words in (
        (lambda: space(ok, "hyperband"), "method is 'hyperband'; it must be one of random, bayes, grid"),
        (lambda: space(ok, metric=None), "metric: is None; it must be a mapping of name, goal"),
        (lambda: space(ok, metric={"name": "psnr"}), "goal is None; it must be one of maximize, minimize"),
        (lambda: space(ok, metric={"goal": "maximize"}), "metric: name is None"),
        (lambda: space(ok, metric=METRIC | {"target": 30}), "metric: no key 'target'"),
        (lambda: space({}), r"parameters: is \{\}; it must be a mapping"),
        (lambda: space(ok, early_terminate={"type": "hyperband"}), "no key 'early_terminate'"),
        (lambda: space({"lr": {"min": 0.1, "max": 1.0}}, "grid"), "lr: is uniform; a grid needs"),
        (lambda: tmp_path / "none.yaml", "none.yaml: cannot be read .No such file"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            sweep.read(path())
        assert "\n" not in str(caught.value)
    (tmp_path / "space.yaml").write_text("method: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        sweep.read(tmp_path / "space.yaml")


@pytest.mark.parametrize(
    "parameters,changes,words",
    [
        ({"learning_rate": {"value": 1}}, {}, "no field 'learning_rate'"),
        ({"warmups": {"min": 1, "max": 3}}, {}, r"no field 'warmups' \(did you mean 'warmup'\?\)"),
        ({"lr": {"values": [0.1, "fast"]}}, {}, "lr: .*number.*'fast'"),
        ({"ema": {"min": 0.5, "max": 1.0}}, {}, "ema: .*less than 1"),
        ({"warmup": {"min": 1.0, "max": 9.0}}, {}, "warmup: .*integer"),
        ({"model_args": {"value": {"wide": 3}}}, {}, "do not fit"),
        ({"lr": {"value": 0.1}}, {"lr": 1}, "lr is given by --lr too"),
    ],
)
def test_a_space_that_does_not_fit_the_recipe(space, tmp_path, parameters, changes, words):
    with pytest.raises(ValueError, match=words):
        sweep.run(space(parameters), "quick", tmp_path / "sweep", 2, changes=changes, progress=False)
    assert not (tmp_path / "sweep").exists()


def test_what_is_refused_before_any_trial(space, tmp_path, monkeypatch):
    go = lambda trials=2, metric=METRIC, **options: sweep.run(
        space({"lr": {"value": 0.1}}, metric=metric), "quick", tmp_path / "sweep", trials, progress=False, **options
    )
    for options, words in (
        ({"trials": 0}, "trials is 0"),
        ({"worker": -1}, "worker is -1"),
        ({"metric": METRIC | {"name": "dice"}}, "name is 'dice'; denoise is scored by 'psnr'"),
        ({"changes": {"data": ["nowhere"]}}, "nowhere: no such folder"),
    ):
        with pytest.raises(ValueError, match=words):
            go(**options)
    monkeypatch.setattr("kunet.tasks.Denoise.load", lambda *args: ([1], []))
    with pytest.raises(ValueError, match="keeps no images to score trials on"):
        go()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'kunet\[cluster\]'"):
        go()
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="start each worker by itself"):
        go()
    assert not (tmp_path / "sweep").exists()


def test_the_example_as_wandbs_agent_runs_it(tmp_path):
    """Its space fits the recipe that its command names, and the command reads the values that an agent gives it."""
    content = yaml.safe_load(SPACE.read_text())
    program = tmp_path / content["program"]
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    values = {"lr": 0.00123, "weight_decay": 0, "warmup": 7}
    macros = {"${env}": ["/usr/bin/env"], "${args}": [f"--{name}={value}" for name, value in values.items()]}
    command = [word for chunk in content["command"] for word in macros.get(chunk, [chunk])]
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "abc"}
    words = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[:6] == ["train", "--recipe", "quick", "--out", "runs/sweep/abc", "--quiet"]
    assert _fields(words[6:]) == values
    for sample in sweep.read(SPACE).samples():
        recipes.load(words[2], sample)


# the trials


@pytest.mark.parametrize("method", ["random", "bayes", "grid"])
def test_draws_depend_on_the_number_alone(space, tmp_path, method):
    """Whoever draws: parallel workers never repeat each other's draws, and a sweep can be made again."""
    lr = {"values": [1, 2, 3]} if method == "grid" else {"min": 0.0, "max": 1.0}
    read = sweep.read(space({"lr": lr, "ema": {"values": [0.5, 0.9]}}, method))

    def draw(folder, order):
        books = [journal.Journal(tmp_path / folder, read, {}) for _ in range(2)]
        trials = []
        for i in order:
            trials.append(books[i].next(i, 6))
            books[i].finish(trials[-1], float(trials[-1].params["lr"]))
        assert books[0].next(0, 6) is None
        return [trial.params for trial in trials]

    alone, shared = draw("alone", [0] * 6), draw("shared", [0, 1, 1, 0, 1, 0])
    assert alone == shared and len({json.dumps(params) for params in alone}) == 6


def test_bayes_learns_from_the_trials(space, tmp_path):
    read = sweep.read(space({"lr": {"min": 0.0, "max": 1.0}}, "bayes"))
    book = journal.Journal(tmp_path / "sweep", read, {})
    while trial := book.next(0, 30):
        book.finish(trial, -abs(trial.params["lr"] - 0.7))
    late = [row["parameters"]["lr"] for row in book.rows()[20:]]
    assert sum(abs(lr - 0.7) < 0.15 for lr in late) >= 6


def test_a_sweep(space, tmp_path):
    path, folder = space({"lr": {"values": [1e-3, 1e-9]}, "seed": {"values": [0, 1]}}, "grid"), tmp_path / "sweep"
    best = sweep.run(path, "quick", folder, 3, changes=TINY, progress=False)
    found = sweep.results(folder)
    assert numbers(folder) == [0, 1, 2] and found["metric"] == "psnr"
    for row in found["trials"]:
        run = Run(folder / f"trial-{row['number']:05d}")
        assert row["state"] == "complete" and row["worker"] == 0 and row["seconds"] > 0
        assert row["score"] == [line["psnr"] for line in run.read_log() if "psnr" in line][-1]
        recipe = json.loads((run.folder / "recipe.json").read_text())
        assert {name: recipe[name] for name in row["parameters"]} == row["parameters"]
        assert recipe["name"] == f"quick-{run.folder.name}"
    assert best == max(found["trials"], key=lambda row: row["score"])
    assert sweep.ranked(found["trials"], "minimize")[-1] == best
    again = sweep.run(path, "quick", folder, 9, worker=5, changes=TINY, progress=False)  # a grid ends
    assert numbers(folder) == [0, 1, 2, 3] and sweep.results(folder)["trials"][3]["worker"] == 5
    assert again["score"] >= best["score"]
    with pytest.raises(ValueError, match="was started with steps 4, not 5"):
        sweep.run(path, "quick", folder, 9, changes=TINY | {"steps": 5}, progress=False)
    with pytest.raises(ValueError, match="was started with method 'grid', not 'random'"):
        sweep.run(space({"lr": {"values": [1e-3]}}), "quick", folder, 9, changes=TINY, progress=False)


def test_a_trial_that_fails(space, tmp_path):
    """It is kept with its reason, and the sweep goes on."""
    parameters = {"model": {"values": ["unet", "kunet_compact"]}, "lr": {"values": [1e-3, 1e30]}}
    changes = TINY | {"model_args": {"widths": [4, 8]}}
    best = sweep.run(space(parameters, "grid"), "quick", tmp_path / "sweep", 4, changes=changes, progress=False)
    rows = sweep.results(tmp_path / "sweep")["trials"]
    assert [row["state"] for row in rows] == ["complete", "failed", "failed", "failed"] and best == rows[0]
    assert "finite" in rows[1]["reason"] and rows[1]["score"] is None
    assert "2 widths and 3 depths" in rows[2]["reason"] and not (tmp_path / "sweep" / "trial-00002").exists()


def test_what_is_no_trials_fault_stops_the_worker(space, tmp_path, monkeypatch):
    """The trial stays, and the worker started again goes on with it."""
    path, folder = space({"lr": {"min": 1e-3, "max": 1e-2}}), tmp_path / "sweep"
    real = workers.train

    def missing(*args, **kwargs):
        raise ValueError("photos: no such folder")

    monkeypatch.setattr(workers, "train", missing)
    with pytest.raises(ValueError, match="worker 3: photos: no such folder"):
        sweep.run(path, "quick", folder, 1, worker=3, changes=TINY, progress=False)
    (row,) = sweep.results(folder)["trials"]
    assert row["state"] == "running"
    assert sweep.run(path, "quick", folder, 1, worker=4, changes=TINY, progress=False) is None  # not its own
    assert sweep.results(folder)["trials"] == [row]
    monkeypatch.setattr(workers, "train", real)
    best = sweep.run(path, "quick", folder, 1, worker=3, changes=TINY, progress=False)
    assert best["parameters"] == row["parameters"] and best["number"] == 0


def test_a_paused_trial_goes_on(space, tmp_path, monkeypatch):
    path, folder = space({"lr": {"min": 1e-3, "max": 1e-2}}), tmp_path / "sweep"
    real = workers.train
    monkeypatch.setattr(workers, "train", lambda *args, **kwargs: real(*args, **kwargs, stop_after=2))
    assert sweep.run(path, "quick", folder, 2, changes=TINY, progress=False) is None
    (row,) = sweep.results(folder)["trials"]
    assert row["state"] == "running"
    monkeypatch.setattr(workers, "train", real)
    sweep.run(path, "quick", folder, 2, changes=TINY, progress=False)
    rows = sweep.results(folder)["trials"]
    assert [r["state"] for r in rows] == ["complete"] * 2 and rows[0]["parameters"] == row["parameters"]
    assert [line["step"] for line in Run(folder / "trial-00000").read_log() if "loss" in line] == [2, 4]


def test_killed_between_the_training_and_the_journal(space, tmp_path, monkeypatch):
    path, folder = space({"lr": {"min": 1e-3, "max": 1e-2}}), tmp_path / "sweep"

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(path, "quick", folder, 1, changes=TINY, progress=False)
    before = Run(folder / "trial-00000").read_log()
    best = sweep.run(path, "quick", folder, 1, changes=TINY, progress=False)
    after = [line for line in Run(folder / "trial-00000").read_log() if "event" not in line]
    assert after == [line for line in before if "event" not in line]  # no step was taken again
    assert best["number"] == 0 and best["score"] == [line["psnr"] for line in after if "psnr" in line][-1]


def test_what_a_killed_process_leaves(space, tmp_path, monkeypatch):
    """Locks that nobody will release, half a line in the journal, a trial that no other worker may take."""
    monkeypatch.setattr(journal, "GRACE", 3)
    read = sweep.read(space({"lr": {"min": 0.0, "max": 1.0}}))
    book = journal.Journal(tmp_path / "sweep", read, {})
    first = book.next(0, 3)
    with open(tmp_path / "sweep" / "journal.log", "ab") as file:
        file.write(b'{"op_code": 8, "worker_id": "dead", "tri')
    (tmp_path / "sweep" / "journal.log.lock").touch()
    (tmp_path / "sweep" / "turn.lock").touch()
    other = journal.Journal(tmp_path / "sweep", read, {})
    second = other.next(1, 3)
    assert second.number == 1 and second.params != first.params
    again = journal.Journal(tmp_path / "sweep", read, {}).next(0, 3)
    assert (again.number, again.params) == (0, first.params)
    assert [row["worker"] for row in other.rows()] == [0, 1]
    lines = (tmp_path / "sweep" / "journal.log").read_text().splitlines()
    assert all(json.loads(line) for line in lines)


# several processes


def start(path, folder, trials, worker, changes):
    code = (
        "import json, sys; from kunet.sweep import run; path, folder, trials, worker, changes = sys.argv[1:];"
        "run(path, 'quick', folder, int(trials), int(worker), json.loads(changes), progress=False)"
    )
    words = [sys.executable, "-c", code, str(path), str(folder), str(trials), str(worker), json.dumps(changes)]
    return subprocess.Popen(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait(process, until):
    deadline = time.monotonic() + 100
    while not until():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def test_two_workers_share_the_trials(space, tmp_path):
    path, folder = space({"lr": {"min": 1e-4, "max": 1e-2}}), tmp_path / "sweep"
    changes = ONE_CROP | {"steps": 20, "save_every": 20}
    other = start(path, folder, 6, 2, changes)
    wait(other, lambda: (folder / "results.json").exists())  # it has drawn a trial
    sweep.run(path, "quick", folder, 6, 1, changes, progress=False)
    assert other.wait(100) == 0
    rows = sweep.results(folder)["trials"]
    assert numbers(folder) == list(range(6)) and {row["worker"] for row in rows} == {1, 2}
    assert all(row["state"] == "complete" for row in rows)
    assert len({row["parameters"]["lr"] for row in rows}) == 6
    assert sorted(p.name for p in folder.glob("trial-*")) == [f"trial-{i:05d}" for i in range(6)]
    storage = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    assert len(optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(storage)).trials) == 6


def test_a_killed_worker_goes_on_with_its_trial(space, tmp_path):
    path, folder = space({"lr": {"min": 1e-4, "max": 1e-2}}), tmp_path / "sweep"
    changes = ONE_CROP | {"steps": 60, "save_every": 20}
    run = Run(folder / "trial-00000")
    process = start(path, folder, 2, 7, changes)
    wait(process, lambda: any(line.get("step", 0) >= 22 for line in run.read_log()))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (before,) = sweep.results(folder)["trials"]
    assert before["state"] == "running" and not (run.folder / "weights.safetensors").exists()
    sweep.run(path, "quick", folder, 2, 7, changes, progress=False)
    rows = sweep.results(folder)["trials"]
    assert [(row["number"], row["state"], row["worker"]) for row in rows] == [(0, "complete", 7), (1, "complete", 7)]
    assert rows[0]["parameters"] == before["parameters"]
    log = run.read_log()
    starts = [line["at"] for line in log if line.get("event") == "started"]
    assert starts[0] == 0 and starts[1] in (20, 40)  # from a checkpoint, not anew
    assert [line["step"] for line in log if "loss" in line] == list(range(2, 61, 2))


# the command


def test_the_command(kunet, refused, space, tmp_path):
    path, out = space({"lr": {"values": [1e-3, 1e30]}}, "grid"), tmp_path / "sweep"
    few = [f"--{name}={json.dumps(value)}" for name, value in TINY.items()]
    words = ["sweep", path, "--recipe", "quick", "--out", out, "--trials", "5", "--quiet", "--device", "cpu", *few]
    result = kunet(*words)
    assert result.returncode == 0, result.stderr
    assert "1 complete, 1 failed" in result.stdout and "best: trial 0, psnr " in result.stdout
    assert "lr 0.001" in result.stdout and not result.stderr
    header, first, second = kunet("sweep", path, "--out", out, "--show").stdout.splitlines()
    assert header.split() == ["trial", "state", "worker", "psnr", "seconds", "lr"]
    assert first.startswith("0      complete") and second.startswith("1      failed") and "finite" in second
    assert "--recipe is missing" in refused("sweep", path, "--out", out)
    assert "no results.json" in refused("sweep", path, "--out", tmp_path / "none", "--show")
    assert "did you mean 'steps'" in refused(*words, "--stesp", "3")
    assert kunet("sweep", "--help").returncode == 0


def test_a_signal_between_two_trials(kunet, space, tmp_path, monkeypatch):
    path, out = space({"lr": {"min": 1e-3, "max": 1e-2}}), tmp_path / "sweep"
    few = [f"--{name}={json.dumps(value)}" for name, value in TINY.items()]
    finish = journal.Journal.finish

    def signalled(*args):
        finish(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(journal.Journal, "finish", signalled)
    words = ["sweep", path, "--recipe", "quick", "--out", out, "--trials", "3", "--quiet", "--device", "cpu", *few]
    result = kunet(*words)
    assert result.returncode == 75 and "trial-00001: paused; the same command goes on" in result.stderr
    assert [row["state"] for row in sweep.results(out)["trials"]] == ["complete", "running"]
    monkeypatch.setattr(journal.Journal, "finish", finish)
    assert "3 complete" in kunet(*words).stdout
