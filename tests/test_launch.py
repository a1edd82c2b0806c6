"""Trainings beside a program: started, watched, stopped, and honest about their end."""

import json

import pytest
from test_train import FEW

from kunet import launch

WORDS = ["--recipe", "quick", "--quiet", "--track", "off", "--device", "cpu", "--threads", "1"]
SMALL = [w for name in ("model_args", "phases") for w in (f"--{name.replace('_', '-')}", json.dumps(FEW[name]))]


def test_commands(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert "torch.distributed.run" not in launch.command(["--recipe", "quick"], 1)
    assert "--nproc-per-node=3" in launch.command([], 3)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert launch.command(["--recipe", "quick"], 3)[0] == "srun"


def test_it_is_watched_to_its_end(tmp_path):
    runs = list(launch.train(tmp_path / "run", [*WORDS, *SMALL, "--steps", "20"], every=0.2))
    assert len(runs) > 1 and runs[-1].status() == ("done", 20)
    assert "done after 20 steps" in (tmp_path / "run" / "console.log").read_text()


def test_closing_pauses(tmp_path):
    watched = launch.train(tmp_path / "run", [*WORDS, *SMALL, "--steps", "5000", "--save-every", "5"], every=0.2)
    run = next(run for run in watched if run.status()[1] >= 5)
    watched.close()
    assert run.status()[0] == "paused"


def test_a_failure_says_why(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"ended with code 2: kunet train: error: .*no field 'stepz'"):
            list(launch.train(tmp_path / "run", [*WORDS, "--stepz", "20"]))
