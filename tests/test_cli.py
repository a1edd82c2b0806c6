"""The command line as its users type it, rightly and wrongly."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from kunet.weights import DEFAULT, find


def test_help_reads_well(kunet):
    top = kunet("--help")
    assert top.returncode == 0
    for command in ("denoise", "train", "evaluate", "benchmark", "notebook"):
        assert command in top.stdout
        assert kunet(command, "--help").returncode == 0
    assert "--steps" in kunet("train", "--help").stdout
    assert kunet("--version").stdout.strip() == "kunet 0.1.0"


def test_as_a_module_in_a_process_of_its_own(tmp_path, photo):
    """python -m kunet is the same; a refusal is one line and exit 2 there too; help needs no torch."""
    run = lambda *words: subprocess.run([sys.executable, "-m", "kunet", *words], capture_output=True, text=True)
    refusal = run("denoise", str(tmp_path / "none.png"))
    assert refusal.returncode == 2 and refusal.stderr.count("\n") == 1 and "no such file" in refusal.stderr
    code = "import sys; from kunet.cli import _parser; _parser(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_denoise(kunet, photo):
    result = kunet("denoise", photo)
    assert result.returncode == 0 and f"{photo}: sigma " in result.stderr  # the photo's own, as nobody states one
    out = photo.with_name("photo_denoised.png")
    before, after = (np.asarray(Image.open(p)).astype(float) for p in (photo, out))
    assert before.shape == after.shape
    rough = lambda x: np.abs(np.diff(x, axis=1)).mean()
    assert rough(after) < rough(before) / 3
    out.write_text("of an earlier run")
    assert kunet("denoise", photo, "--skip-existing").returncode == 0 and out.read_text() == "of an earlier run"
    assert "not allowed with" in kunet("denoise", photo, "--skip-existing", "--force").stderr


def test_a_level_it_was_not_trained_for_is_said(kunet, photo):
    result = kunet("denoise", photo, "--sigma", "120", "--quiet")
    assert result.returncode == 0 and "trained for sigma 0 to 75" in result.stderr


def test_denoise_tiled(kunet, photo, tmp_path):
    big = Image.open(photo).resize((900, 700))
    big.save(tmp_path / "big.png")
    result = kunet("denoise", tmp_path / "big.png", "-o", tmp_path / "out.jpg", "--memory", "0.05", "--sigma", "20")
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "out.jpg").size == (900, 700) and "tile" in result.stderr


@pytest.mark.parametrize("sigma", ["nan", "-3", "inf", "300"])
def test_bad_sigma(refused, photo, sigma):
    assert "must be a number from 0 to 255" in refused("denoise", photo, f"--sigma={sigma}")


def test_bad_photos(refused, tmp_path, photo):
    text, empty, cut = (tmp_path / n for n in ("text.png", "empty.png", "cut.png"))
    text.write_text("not a picture")
    empty.touch()
    cut.write_bytes(photo.read_bytes()[:2000])
    before = sorted(p.name for p in tmp_path.iterdir())
    for path, words in (
        (tmp_path / "missing.png", "no such file"),
        (text, "not an image that Pillow can read"),
        (empty, "0 bytes"),
        (cut, "damaged"),
    ):
        line = refused("denoise", path)
        assert words in line and str(path) in line
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_decompression_bomb(refused, tmp_path):
    from test_images import bomb

    bomb(tmp_path / "bomb.png")
    assert "at most 178 million" in refused("denoise", tmp_path / "bomb.png")


def test_a_folder_without_permission(refused, tmp_path, photo):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    try:
        (locked / "probe").touch()
        (locked / "probe").unlink()
        locked.rmdir()
        locked = "/proc"  # root may write anywhere but here
    except PermissionError:
        pass
    line = refused("denoise", photo, "-o", f"{locked}/out.png")
    assert "cannot write there" in line and "choose another place" in line


def test_weights_that_are_a_pickle(refused, tmp_path, photo):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}))
    line = refused("denoise", photo, "--weights", tmp_path / "w.pth")
    assert "not a safetensors file" in line and "can run code" in line
    assert not (tmp_path / "photo_denoised.png").exists()
    assert "give a released name (kunet_base, kunet_small, kunet_tiny)" in refused(
        "denoise", photo, "--weights", "kunet_smal"
    )
    assert "argument --ensemble: invalid choice" in refused("denoise", photo, "--ensemble", "3")
    assert "no such weights file" in refused("denoise", photo, "--weights", "kunet_huge")


def test_wrong_words(refused, photo):
    assert "invalid choice: 'denoize'" in refused("denoize", photo)
    assert "unknown argument '--sgima'" in refused("denoise", photo, "--sgima", "3")
    assert "required" in refused("denoise")
    assert "no memory budget" in refused("denoise", photo, "--memory", "lots")
    assert "--device is 'tpu'" in refused("denoise", photo, "--device", "tpu")
    assert "no size" in refused("benchmark", "--sizes", "big")
    assert "noise mode is 'loud'" in refused("evaluate", "--noise", "loud")
    assert "no such folder" in refused("evaluate", "nowhere")


def test_photos_stand_together(refused, photo):
    line = refused("denoise", photo, "--sigma", "30", "b.png")
    assert "'b.png' stands apart from the other photos" in line and "see kunet denoise --help" in line
    assert "an empty path" in refused("denoise", "") and "an empty path" in refused("denoise", photo, "-o", "")


def test_what_is_no_result_of_ours_is_not_written_over(refused, photo, tmp_path):
    before = photo.read_bytes()
    assert "--json writes one .json file" in refused("evaluate", "--json", photo)
    assert "--json writes one .json file" in refused("benchmark", "--json", photo)
    assert "cannot hold the classes" in refused("segment", photo, "--weights", "w", "-o", tmp_path / "mask.jpg")
    (tmp_path / "card.json").write_text('{"recipe": {}}')
    assert "is no result of an earlier measurement" in refused("evaluate", "--json", tmp_path / "card.json")
    mine = tmp_path / "mine.ipynb"
    shutil.copy(ROOT / "notebooks" / "01_splines.ipynb", mine)
    assert "is no output of an earlier run" in refused("notebook", "splines", "--quick", "-o", mine)
    assert "ends in .ipynb" in refused("notebook", "splines", "--quick", "-o", photo)
    assert "cannot make the run's folder" in refused("train", "--recipe", "quick", "--dry-run", "--out", photo)
    (tmp_path / "log.jsonl").touch()
    for words in (["--dry-run"], ["--quiet", "--steps", "2"]):
        line = refused("train", "--recipe", "quick", "--out", tmp_path, *words)
        assert "holds log.jsonl of something else" in line
    (tmp_path / "notes.txt").touch()
    line = refused("denoise", photo, "-o", tmp_path / "notes.txt", "--force")
    assert "cannot write .txt" in line and photo.read_bytes() == before


def test_numbers_out_of_range(refused):
    assert "--seed is -1; it must be from 0 to" in refused("evaluate", "--seed", "-1")
    assert "more than the 178 million pixels" in refused("benchmark", "--sizes", "1000000x1000000")


def test_train_wrongly(refused, tmp_path):
    assert "did you mean 'steps'" in refused("train", "--recipe", "quick", "--stesp", "5")
    assert "no such recipe (did you mean 'quick'?)" in refused("train", "--recipe", "quikc")
    assert "has no value" in refused("train", "--recipe", "quick", "--steps")
    assert "unexpected argument 'extra'" in refused("train", "--recipe", "quick", "extra")
    line = refused("train", "--recipe", "quick", "--data", "[nowhere]", "--out", tmp_path / "run", "--quiet")
    assert "nowhere: no such folder" in line


def test_dry_run_writes_nothing(kunet, tmp_path):
    result = kunet("train", "--recipe", "quick", "--lr", "1e-4", "--batch-sizes", "3", cwd=tmp_path)
    assert result.returncode == 2
    result = kunet("train", "--recipe", "quick", "--lr", "1e-4", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "lr: 0.0001" in result.stdout and "3 examples to train on, 3 held out" in result.stdout
    assert not list(tmp_path.iterdir())


def test_train_evaluate_denoise(kunet, tmp_path, photo):
    out = tmp_path / "run"
    few = ["--steps", "6", "--phases", "[{share: 1.0, patch: 32, batch: 2}]", "--save-every=3", "--log-every=3"]
    result = kunet("train", "--recipe", "quick", "--out", out, *few)
    assert result.returncode == 0, result.stderr
    assert "psnr" in result.stderr and "loss" in result.stderr  # the bar
    weights = out / "weights.safetensors"
    result = kunet("evaluate", "--weights", weights, "--json", tmp_path / "e.json", "--quiet")
    assert result.returncode == 0 and "3 images, sigma 50 (float noise)" in result.stdout
    assert json.loads((tmp_path / "e.json").read_text())["results"]["bundled"]["images"] == 3
    assert kunet("denoise", photo, "--weights", weights, "--quiet").returncode == 0
    result = kunet("benchmark", "--weights", weights, "--sizes", "64x48", "--repeats", "1")
    assert "64x48: " in result.stdout and "peak memory" in result.stdout


def test_the_shipped_card():
    path = find(DEFAULT)
    assert path.stat().st_size <= 8_000_000
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["recipe"]["name"] == DEFAULT and card["recipe"]["steps"] > 0
    assert "no test image" in card["data"]
    assert card["measured"]["sigmas"] == [15, 25, 50]
