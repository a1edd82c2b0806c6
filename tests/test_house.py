"""The house keeps its floors: a room imports only from floors below it (see CONTRIBUTING.md)."""

import ast
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

FLOORS = {
    "metadata": -1,
    **dict.fromkeys(
        ["splines", "blocks", "attention", "images", "metrics", "ensemble", "tiling", "distributed", "memory"], 0
    ),
    **dict.fromkeys(["kan", "data", "weights", "noise"], 1),
    **dict.fromkeys(["models", "tasks"], 2),
    **dict.fromkeys(["runs", "recipes", "folders"], 3),
    **dict.fromkeys(["train", "restore"], 4),
    **dict.fromkeys(["denoise"], 5),
    **dict.fromkeys(["evaluate", "benchmark", "notebook", "export", "sweep", "launch"], 6),
    "cli": 7,
}
GARDEN = {"plots": {"splines", "kan", "images"}, "widgets": {"splines"}}
WINGS = ({"images", "data", "tasks"}, {"splines", "kan", "models"})


def rooms() -> dict[str, set[str]]:
    """Every room of the package and the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "kunet").rglob("*.py")):
        room = path.relative_to(ROOT / "kunet").parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        imports = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "kunet":
                imports.update(alias.name for alias in node.names if not alias.name.startswith("_"))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kunet."):
                imports.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                imports.update(a.name.split(".")[1] for a in node.names if a.name.startswith("kunet."))
        imports.discard(room)
    return found


def test_every_room_has_a_floor():
    assert set(rooms()) == set(FLOORS) | set(GARDEN)


@pytest.mark.parametrize("room", sorted(FLOORS))
def test_imports_go_down(room):
    too_high = {other for other in rooms()[room] if other not in FLOORS or FLOORS[other] >= FLOORS[room]}
    assert not too_high, f"{room} (floor {FLOORS[room]}) imports {too_high}"


@pytest.mark.parametrize("room", sorted(GARDEN))
def test_the_garden(room):
    assert rooms()[room] <= GARDEN[room]


def test_the_wings_do_not_meet():
    found = rooms()
    for one, other in (WINGS, WINGS[::-1]):
        for room in one:
            assert not found[room] & other, f"{room} imports {found[room] & other}"


def test_import_is_light():
    """import kunet loads nothing heavy; the verbs load no plots, no notebooks, no test data."""
    code = "import sys, kunet; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "matplotlib", "wandb", "IPython", "skimage"} & set(loaded)
    code = "import sys, kunet.train, kunet.denoise, kunet.evaluate; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "wandb", "optuna", "IPython", "papermill", "skimage", "sklearn"} & set(loaded)


def test_one_list_of_dependencies():
    """Everything pinned is installed from pyproject's list; environment.yml lists nothing of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in pins)
    assert all("==" in line for line in pins if line.strip() and not line.startswith("#"))
    environment = (ROOT / "environment.yml").read_text()
    assert ".[book]" in environment
    named = [line for line in environment.splitlines() if line.strip().startswith("- ")]
    assert len(named) == 6, named  # a channel, python, pip, pip:, the pins, the package itself


def test_rooms_are_small():
    for path in (ROOT / "kunet").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
