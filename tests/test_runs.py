"""A run's folder: whole files, safe weights, checkpoints that can be trusted."""

import os
import pickle
import resource

import pytest
import torch
from safetensors.torch import save_file

from kunet.denoise import Denoiser
from kunet.models import UNet
from kunet.runs import Run, checkpoints, load_weights, save_weights, write_whole


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
    for step in range(1, 5):
        run.save(step, {"step": step, "model": {"w": torch.ones(2)}}, keep=3)
    assert [step for step, _ in checkpoints.saved(tmp_path / "checkpoints")] == [2, 3, 4]
    assert run.load()["step"] == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "longer", "another's name"])
def test_damaged_checkpoints(tmp_path, capsys, damage):
    run = Run(tmp_path)
    for step in (1, 2):
        run.save(step, {"step": step, "w": torch.randn(100)})
    older, newer = (path for _, path in checkpoints.saved(tmp_path / "checkpoints"))
    content = newer.read_bytes()
    flipped = content[:700] + bytes([content[700] ^ 1]) + content[701:]
    changed = {"truncated": content[:-1], "empty": b"", "one bit": flipped, "longer": content + b"0"}
    newer.write_bytes(changed.get(damage, older.read_bytes()))
    assert run.load()["step"] == 1
    assert capsys.readouterr().err.startswith(f"{newer}: damaged") and run.read_log()[-1]["file"] == newer.name
    assert [step for step, _ in checkpoints.saved(tmp_path / "checkpoints")] == [1]
    older.write_bytes(b"")
    with pytest.raises(ValueError, match="all 1 checkpoints are damaged"):
        run.load()


def test_what_a_kill_left_unfinished_goes(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-00000004-abc").write_bytes(b"half")
    Run(tmp_path).own()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_one_owner(tmp_path):
    first, second = Run(tmp_path), Run(tmp_path)
    first.own("SLURM_JOB_ID=7")
    for job in ("", "SLURM_JOB_ID=8"):
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is training here"):
            second.own(job)
    first.log(step=1)
    second.own("SLURM_JOB_ID=7")  # the same job, started again while a lost node's process lives on
    for write in (lambda: first.log(step=2), lambda: first.save(2, {}), lambda: first.write_status("running", 2)):
        with pytest.raises(ValueError, match="another process goes on with this run"):
            write()
    second.log(step=2)
    assert [row["step"] for row in second.read_log()] == [1, 2]
    first.release()
    second.release()
    Run(tmp_path).own()


def test_status_and_a_log_that_goes_back(tmp_path):
    run = Run(tmp_path)
    assert run.status() == ("new", 0)
    run.write_status("running", 7)
    assert run.status() == ("running", 7) and (tmp_path / "status").read_text() == "running 7\n"
    run.log(event="started", at=0)
    for step in range(5):
        run.log(step=step)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # torn by a kill
    run.rewind_log(3)
    assert [row.get("step", "-") for row in run.read_log()] == ["-", 0, 1, 2, 3]
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    run.log(event="damaged")  # on the torn line, which is lost with it
    assert len(run.read_log()) == 5


def test_a_write_that_is_cut_short_is_noticed(tmp_path):
    """The system takes a part of a block up to a limit, as it does on a nearly full disk, and fails the next one."""
    run = Run(tmp_path)
    run.save(1, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run.save(2, {"step": 2, "w": torch.arange(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.load() == {"step": 1} and len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_run_of_an_earlier_version(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="of an earlier version"):
        Run(tmp_path).latest()


class Evil:
    def __reduce__(self):
        return (open, ("pwned.txt", "w"))


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path)
    run.save(1, {"step": 1, "model": Evil()})
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
    save_file({"w": torch.ones(1)}, path, {"model": "unet", "model_args": "[1]"})
    with pytest.raises(ValueError, match=r"holds no model .*model_args are \[1\], no mapping"):
        load_weights(path)
    broken = UNet(widths=(4,))
    next(broken.parameters()).data.view(-1)[0] = float("nan")
    save_weights(path, broken, "unet", {"widths": [4]}, {})
    with pytest.raises(ValueError, match=f"{path}: .* values that are not finite"):
        load_weights(path)


@pytest.mark.parametrize(
    "text,words",
    [
        (None, "no such card, which says what w.safetensors was trained for"),
        ("{oops", r"not a card, which is JSON \(Expecting property name"),
        ("[1]", "not a card, which holds a recipe"),
        ('{"recipe": "quick"}', "not a card, which holds a recipe"),
        ('{"recipe": {"task_args": [1]}}', "not a card, which holds a recipe"),
        ('{"recipe": {"task_args": {"sigma": 25}}}', "task_args .* do not fit denoise"),
        ('{"recipe": {"task": "segment"}}', "was trained for the task segment; use kunet segment"),
    ],
)
def test_cards(tmp_path, text, words):
    """What weights were trained for is not guessed."""
    path = tmp_path / "w.safetensors"
    save_weights(path, UNet(widths=(4,)), "unet", {"widths": [4]}, {})
    path.with_suffix(".json").unlink()
    if text:
        path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=words):
        Denoiser.load(str(path))


def test_files_of_something_else_are_not_written_over(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "notes.txt").touch()
    run.check_free()
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(ValueError, match=r"holds weights.safetensors of something else .* choose another --out"):
        run.check_free()
    run.write_recipe({})
    run.check_free()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the run's folder"):
        Run(tmp_path / "file" / "run")
