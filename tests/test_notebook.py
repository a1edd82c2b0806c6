"""The strict runner: parameters by name and type, before any kernel starts."""

import os
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from kunet import notebook

CELL = """from typing import Literal

steps: int = 5  # how many
rate: float = 1e-3  # how fast
quick: bool = False  # whether to hurry
mode: Literal["a", "b"] = "a"  # which
sizes: list[int] = [1, 2]  # how large"""


def write(path, *cells, quick=None, parameters=CELL):
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nb.cells += [nbformat.v4.new_code_cell(c) for c in cells]
    if quick is not None:
        nb.metadata["kunet"] = {"quick": quick}
    nbformat.write(nb, path)
    return path


def test_parameters(tmp_path):
    found = notebook.parameters(write(tmp_path / "a.ipynb"))
    assert [p.name for p in found] == ["steps", "rate", "quick", "mode", "sizes"]
    assert str(found[0]) == "steps: int = 5  # how many"


@pytest.mark.parametrize(
    "given,wanted",
    [
        ({"steps": "7"}, {"steps": 7}),
        ({"rate": "1e-5"}, {"rate": 1e-5}),
        ({"quick": "true"}, {"quick": True}),
        ({"quick": False}, {"quick": False}),
        ({"mode": "b"}, {"mode": "b"}),
        ({"sizes": [3]}, {"sizes": [3]}),
    ],
)
def test_values(tmp_path, given, wanted):
    assert notebook.resolve(write(tmp_path / "a.ipynb"), given) == wanted


@pytest.mark.parametrize(
    "given,words",
    [
        ({"step": 7}, "no parameter 'step' \\(did you mean 'steps'"),
        ({"steps": "many"}, "'steps' is 'many', not int"),
        ({"steps": 1.5}, "'steps' is 1.5, not int"),
        ({"quick": "yes"}, "must be true or false"),
        ({"quick": 1}, "must be true or false"),
        ({"mode": "c"}, "'a' or 'b'"),
        ({"sizes": 3}, "not list"),
        ({"steps": True}, "is True, not int"),
        ({"rate": float("nan")}, "finite"),
    ],
)
def test_wrong_values_start_nothing(tmp_path, given, words):
    path = write(tmp_path / "a.ipynb", "raise SystemExit('started')")
    with pytest.raises(ValueError, match=words):
        notebook.run(path, tmp_path / "out.ipynb", given, progress=False)
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    "line", ["steps = 5", "steps: int = 5", "steps: int = open('x')  # evil", "steps: object = 5  # what", "import os"]
)
def test_bad_declarations(tmp_path, line):
    with pytest.raises(ValueError, match="must read 'name: type = default  # what it is'"):
        notebook.parameters(write(tmp_path / "a.ipynb", parameters=line))


def test_run_injects_and_keeps_the_output(tmp_path):
    path = write(tmp_path / "a.ipynb", "print(steps * 2, quick, mode)", quick={"steps": 3})
    notebook.run(path, tmp_path / "out" / "o.ipynb", {"quick": True}, quick=True, progress=False)
    cells = notebook.read(tmp_path / "out" / "o.ipynb").cells
    assert cells[-1].outputs[0].text == "6 True a\n"


def test_tuples_are_injected_as_tuples(tmp_path):
    declared = "sides: tuple[int, ...] = (1, 2)  # how large\npairs: list[tuple[str, float]] = []  # which"
    checks = ("assert sides == (5,), sides", "assert pairs == [('a', 0.5), ('b', 1.0)], pairs")
    path = write(tmp_path / "a.ipynb", *checks, parameters=declared)
    notebook.run(path, tmp_path / "out.ipynb", {"sides": [5], "pairs": [["a", 0.5], ["b", 1]]}, progress=False)


def test_a_failing_cell_keeps_its_error(tmp_path, kunet):
    path = write(tmp_path / "a.ipynb", "1 / 0")
    result = kunet("notebook", path, "-o", tmp_path / "out.ipynb")
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]  # after the progress bar
    assert "ZeroDivisionError" in line and str(tmp_path / "out.ipynb") in line
    outputs = [o for c in notebook.read(tmp_path / "out.ipynb").cells for o in c.get("outputs", [])]
    assert any(o.output_type == "error" for o in outputs)


def test_chapters_by_name(tmp_path, monkeypatch):
    for name in ("splines", "01", "01_splines"):
        assert notebook.find(name).name == "01_splines.ipynb"
    assert notebook.find("some/where.ipynb") == Path("some/where.ipynb")
    with pytest.raises(
        ValueError, match=r"'spline': no such chapter \(did you mean '01_splines'\?\); there are 01_spl"
    ):
        notebook.find("spline")


def test_the_log_has_what_cells_printed(tmp_path, capfd):
    path = write(tmp_path / "a.ipynb", "import os\nprint('seen', os.environ['KUNET_BATCH'])")
    notebook.run(path, tmp_path / "o.ipynb")
    log = (tmp_path / "o.log").read_text()
    assert "seen 1" in log and "Executing Cell" in log
    assert "Executing Cell" in capfd.readouterr().err  # no terminal here: a line a cell
    assert "KUNET_BATCH" not in os.environ


def test_sigterm_ends_the_kernel_and_saves(tmp_path):
    import os
    import signal
    import subprocess
    import sys
    import time

    path = write(
        tmp_path / "a.ipynb",
        "import os; print(os.getpid(), flush=True)\nopen('pid', 'w').write(str(os.getpid()))",
        "import time; time.sleep(100)",
    )
    command = [sys.executable, "-m", "kunet", "notebook", str(path), "-o", str(tmp_path / "out.ipynb")]
    job = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not (tmp_path / "pid").exists() and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    kernel = int((tmp_path / "pid").read_text())
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 130
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.kill(kernel, 0)
            time.sleep(0.2)
    assert notebook.read(tmp_path / "out.ipynb").cells


def test_command_line(kunet, refused, tmp_path):
    path = write(tmp_path / "a.ipynb", "print(steps)")
    listed = kunet("notebook", path, "--list")
    assert listed.stdout.splitlines()[0] == "steps: int = 5  # how many"
    assert "no parameter 'step'" in refused("notebook", path, "-p", "step", "3")
    assert "no such notebook" in refused("notebook", tmp_path / "none.ipynb")
    (tmp_path / "p.yaml").write_text("steps: 8\n")
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    assert f"{tmp_path}/p.png: not a readable YAML file" in refused("notebook", path, "-f", tmp_path / "p.png")
    result = kunet("notebook", path, "-f", tmp_path / "p.yaml", "-o", tmp_path / "o.ipynb")
    assert result.returncode == 0, result.stderr
    assert notebook.read(tmp_path / "o.ipynb").cells[-1].outputs[0].text == "8\n"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_chapter_declares_its_parameters(path):
    cells = notebook.read(path).cells
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    assert notebook.parameters(path)
    notebook.resolve(path, {}, quick=True)
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
