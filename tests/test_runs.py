"""A run's folder: whole files, safe weights, checkpoints that can be trusted."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from kunet.models import UNet
from kunet.runs import Run, load_weights, save_weights, write_whole


def test_write_whole(tmp_path):
    target = tmp_path / "a.txt"
    write_whole(target, lambda p: p.write_text("first"))

    def half(path):
        path.write_text("half of the sec")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_whole(target, half)
    assert target.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_log(tmp_path):
    run = Run(tmp_path / "run")
    run.log(step=1, loss=2.5)
    run.log(step=2, psnr=30.0)
    assert [row["step"] for row in run.read_log()] == [1, 2] and run.read_log()[1]["psnr"] == 30.0


def test_checkpoints(tmp_path):
    run = Run(tmp_path)
    assert run.load() is None
    run.save({"step": 3, "model": {"w": torch.ones(2)}})
    assert run.load()["step"] == 3
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        run.load()


class Evil:
    def __reduce__(self):
        return (open, ("pwned.txt", "w"))


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path)
    torch.save({"step": 1, "model": Evil()}, run.checkpoint)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        run.load()
    assert not (tmp_path / "pwned.txt").exists()


def test_weights_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match="no such weights file"):
        load_weights(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"not a safetensors file.*can run code"):
        load_weights(path)
    assert not (tmp_path / "pwned.txt").exists()
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="no model 'unnamed'"):
        load_weights(path)
    save_weights(path, UNet(widths=(4,)), "unet", {"widths": [4, 8]}, {})
    with pytest.raises(ValueError, match="holds no model of this package"):
        load_weights(path)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the run's folder"):
        Run(tmp_path / "file" / "run")
