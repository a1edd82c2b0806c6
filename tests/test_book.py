"""The published book, as a reader meets it: whole, offline, alive. And its builder."""

import importlib.util
import json
import re

import nbformat
import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

PAGES = ["book/intro", "book/results", "book/use", "book/data", "book/references"]
CHAPTERS = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))


def test_the_table_of_contents_has_every_chapter():
    toc = (ROOT / "_toc.yml").read_text()
    assert all(f"notebooks/{name}" in toc for name in CHAPTERS)


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_ran(book, name):
    executed = nbformat.read(book.parent / "notebooks" / f"{name}.ipynb", as_version=4)
    assert executed.metadata.papermill.exception is None
    assert executed.metadata.papermill.duration < 60, f"{executed.metadata.papermill.duration:.0f} s"
    outputs = [o for c in executed.cells for o in c.get("outputs", [])]
    assert outputs and not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_no_number_is_missing(book):
    for page in PAGES:
        html = (book / f"{page}.html").read_text()
        assert "{{" not in html and "substitution" not in html.lower()


def open_page(browser, path):
    """The page opened from disk with the network off; returns it with its foreign requests and errors."""
    context = browser.new_context(offline=True, viewport={"width": 1300, "height": 900})
    page = context.new_page()
    foreign, errors = [], []
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else foreign.append(r.url))
    page.on("requestfailed", lambda r: errors.append(f"failed: {r.url}"))
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(path.as_uri())
    page.wait_for_load_state("load")
    return page, foreign, errors


@pytest.mark.parametrize("name", [*PAGES, *(f"notebooks/{c}" for c in CHAPTERS)])
def test_pages_are_whole_offline(book, browser, name):
    page, foreign, errors = open_page(browser, book / f"{name}.html")
    page.wait_for_timeout(800)
    assert not foreign and not errors
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert not broken
    if page.locator(".math").count():
        page.wait_for_selector("mjx-container svg", timeout=10_000)
        assert page.locator("mjx-container").count() >= page.locator(".math").count()
        assert not page.locator("mjx-merror").count()
    page.context.close()


def test_the_index_leads_to_the_landing_page(book, browser):
    page, foreign, _ = open_page(browser, book / "index.html")
    page.wait_for_url("**/book/intro.html")
    page.wait_for_load_state("load")
    assert "KUnet" in page.locator("article h1").inner_text() and not foreign
    slider = page.locator(".compare input")
    cut = lambda: page.evaluate("getComputedStyle(document.querySelector('.compare')).getPropertyValue('--cut').trim()")
    assert cut() == "50%"
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "getComputedStyle(document.querySelector('.compare')).getPropertyValue('--cut').trim() == '51%'"
    )
    page.context.close()


def numbers(path: str) -> list[float]:
    return [float(v) for v in re.findall(r"-?\d+\.?\d*", path)]


def test_the_spline_editor_lives_on_the_page(book, browser):
    """Dragging a control point bends the curve, and the script's curve is kunet.splines' curve."""
    import torch

    from kunet import splines
    from kunet.widgets import SplineEditor

    page, _, errors = open_page(browser, book / "notebooks" / "01_splines.html")
    page.wait_for_selector(".kunet-handle")
    curve = lambda: numbers(page.locator(".kunet-curve").get_attribute("d"))
    before = curve()
    handle = page.locator(".kunet-handle").nth(2)
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 60, steps=5)
    page.mouse.up()
    after = curve()
    assert before != after and before[:2] == after[:2] and not errors
    handle.focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_timeout(300)
    assert curve() != after
    count = page.locator(".kunet-handle").count()
    centres = [
        [float(page.locator(".kunet-handle").nth(i).get_attribute(a)) for a in ("cx", "cy")] for i in range(count)
    ]
    knots = splines.clamped_knots(torch.linspace(0, 1, count - 2, dtype=torch.float64), 3).tolist()
    ours = SplineEditor([[0, 0]] * count, knots)
    ours.points = centres
    wanted = ours.curve(torch.linspace(0, 1, 201, dtype=torch.float64)).flatten().tolist()
    assert curve() == pytest.approx(wanted, abs=2e-3)
    page.context.close()


def test_figures_grow_on_a_click(book, browser):
    page, _, _ = open_page(browser, book / "notebooks" / "05_images.html")
    page.locator(".cell_output img").first.click()
    assert page.locator("dialog.zoom[open] img").count() == 1
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    assert page.locator("dialog.zoom[open]").count() == 0
    page.context.close()


# The builder itself


def test_what_a_notebook_depends_on():
    package = ROOT / "kunet"
    found = build.imported_files("from kunet import splines\nfrom kunet.kan import KANLinear")
    assert {package / "splines.py", package / "kan" / "linear.py"} <= found
    assert package / "train.py" not in found and package / "models" / "unet.py" not in found
    weights = build.imported_files("import kunet.denoise")
    assert package / "weights" / "kunet_tiny.safetensors" in weights and package / "models" / "compact.py" in weights


def test_a_change_in_the_package_reruns_what_depends_on_it(tmp_path, monkeypatch):
    """A copy of the house with two tiny chapters: one imports splines, one images; a failing one fails the build."""
    import shutil

    for name in ("kunet", "constraints.txt"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "results").mkdir(parents=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(build.imported_files, "__defaults__", (tmp_path / "kunet", None))
    for name, code in (("a", "from kunet import splines"), ("b", "from kunet import images")):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        nbformat.write(nb, tmp_path / "notebooks" / f"{name}.ipynb")
    ran = []
    monkeypatch.setattr(
        build.notebook, "run", lambda path, output, **k: (ran.append(path.stem), output.write_text("{}"))
    )

    def build_again():
        ran.clear()
        build.run_notebooks()
        return list(ran)

    assert build_again() == ["a", "b"]
    assert build_again() == []
    with open(tmp_path / "kunet" / "splines.py", "a") as file:
        file.write("# changed\n")
    assert build_again() == ["a"]
    with open(tmp_path / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert build_again() == ["a", "b"]

    def fails(path, output, **kwargs):
        raise ValueError(f"{path}: cell 1 failed")

    monkeypatch.setattr(build.notebook, "run", fails)
    (tmp_path / "executed" / "a.sha256").unlink()
    with pytest.raises(ValueError, match="cell 1 failed"):
        build.run_notebooks()
    assert not (tmp_path / "executed" / "a.sha256").exists()


def test_facts_are_read_from_the_results():
    facts = build.facts()
    results = json.loads((ROOT / "book" / "results" / "denoise.json").read_text())
    assert facts["denoise_sets_cbsd68_kunet_tiny_50_psnr"] == str(results["sets"]["cbsd68"]["kunet_tiny"]["50"]["psnr"])
    each = json.loads((ROOT / "book" / "results" / "compare.json").read_text())["models"]["unet"]["train_seconds"]
    assert facts["compare_models_unet_train_seconds"] == ", ".join(map(str, each))
    for page in (ROOT / "book").glob("*.md"):
        for name in re.findall(r"\{\{ (\w+) \}\}", page.read_text()):
            assert name in facts or name.startswith("pair_"), f"{page.name}: nothing measured {name}"
