"""On a real SLURM of two nodes, whatever a cluster does to a training, it ends with a quiet run's weights."""

import importlib
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from cluster import ENDED
from conftest import ROOT

from kunet import sweep
from kunet.runs import Run


@pytest.fixture(scope="module")
def scenarios():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("cluster_runs")


@pytest.fixture(scope="module")
def bench(scenarios, cluster, tmp_path_factory):
    """The cluster, and a run of two processes on two nodes that nothing disturbed."""
    bench = scenarios.Bench(cluster, tmp_path_factory.mktemp("runs"))
    job = bench.submit("reference", *scenarios.TWO_NODES, wait=200)
    assert cluster.state(job) == "COMPLETED", (bench.folder / "reference.out").read_text()
    return bench


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_are_clean():
    scripts = [*sorted((ROOT / "slurm").glob("*.s*h*")), ROOT / ".ci" / "run"]
    assert len(scripts) == 6
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sbatch")), ids=lambda path: path.stem)
def test_scripts_are_short_and_come_back(script):
    lines = script.read_text().splitlines()
    assert len(lines) <= 32 and {"#SBATCH --signal=USR1@120", "#SBATCH --requeue"} <= set(lines)


def test_two_nodes_train_together(bench):
    run = Run(bench.folder / "reference")
    assert run.status() == ("done", 500) and run.read_log()[0]["processes"] == 2


@pytest.mark.parametrize("names", [("requeued", "killed"), ("preempted",), ("lost",)], ids=" and ".join)
def test_it_survives(scenarios, bench, names):
    """Each goes on from its last checkpoint: no step is missing in the log, and the weights are the same to the bit."""
    reference = Run(bench.folder / "reference")
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(lambda name: scenarios.run(bench, name, reference), names))
    for row in rows:
        assert row["completed"] and row["identical"] and row["restarts"] >= 1 and row["lost_steps"] == 0, row
        assert row["repeated_steps"] <= 2 * scenarios.RECIPE["save_every"], row
    bench.cluster.wait_idle()


def test_a_run_that_is_done_is_left_alone(scenarios, bench):
    """Newer SLURMs start a job once more after it has put itself back into the queue."""
    job = bench.submit("reference", *scenarios.TWO_NODES, wait=60)
    assert bench.cluster.state(job) == "COMPLETED"
    log = (bench.folder / "reference" / "log.jsonl").read_text()
    bench.cluster.scontrol("requeue", job)
    bench.cluster.until(lambda: bench.cluster.job(job)["Restarts"] == "1", 60)
    assert bench.cluster.wait(job, ENDED, 60) == "COMPLETED"
    assert (bench.folder / "reference" / "log.jsonl").read_text() == log


def test_a_run_that_fails_is_not_started_again(scenarios, bench):
    job = bench.submit("wrong", *scenarios.TWO_NODES, wait=60, fields=("--lr", "fast"))
    assert bench.cluster.job(job)["Restarts"] == "1"  # once, since it might have been the node
    said = (bench.folder / "wrong.out").read_text()
    assert bench.cluster.state(job) == "FAILED" and "lr: input should be a valid number" in said
    assert "not back into the queue" in said


def test_a_sweep_as_an_array(bench):
    space, folder = bench.folder / "space.yaml", bench.folder / "sweep"
    space.write_text(
        "method: random\nmetric: {name: psnr, goal: maximize}\nparameters: {lr: {min: 0.001, max: 0.01}}\n"
    )
    options = ["--array=0-1", "--gres=gpu:a100:1", "--mem=2G", "--cpus-per-task=1", "--time=5"]
    where = [f"--export=ALL,SWEEP={folder},WANDB_MODE=disabled", f"--output={bench.folder}/sweep-%a.out"]
    words = ["slurm/sweep.sbatch", space, "--recipe", bench.folder / "recipe.yaml", "--steps", "20", "--trials", "4"]
    job = bench.cluster.run("sbatch", "--parsable", *options, *where, *words, "--device", "cpu", cwd=ROOT)
    for task in (f"{job}_0", f"{job}_1"):
        assert bench.cluster.wait(task, ENDED, 120) == "COMPLETED", (bench.folder / "sweep-0.out").read_text()
    rows = sweep.results(folder)["trials"]
    assert sorted(row["number"] for row in rows) == [0, 1, 2, 3] and {row["state"] for row in rows} == {"complete"}


@pytest.mark.skipif(not (ROOT / "notebooks" / "14_training.ipynb").exists(), reason="the chapter is not here")
def test_the_training_chapter_as_a_job(bench):
    """Its notebook, the mirror's folder and the log of the training lie in one folder."""
    folder = bench.folder / "chapter"
    options = ["--ntasks-per-node=2", "--gres=gpu:a100:1", "--mem=4G", "--cpus-per-task=1", "--time=10"]
    where = [f"--export=ALL,RUN={folder},WANDB_MODE=offline", f"--output={bench.folder}/chapter.out"]
    job = bench.cluster.run(
        "sbatch", "--parsable", *options, *where, "slurm/notebook.sbatch", "training", "--quick", cwd=ROOT
    )
    assert bench.cluster.wait(job, ENDED, 300) == "COMPLETED", (bench.folder / "chapter.out").read_text()
    assert Run(folder).status()[0] == "done" and list(folder.glob("wandb/offline-run-*"))
    assert Run(folder).read_log()[0]["processes"] == 2
    executed = nbformat.read(folder / f"training-{job}.0.ipynb", as_version=4)
    assert executed.metadata.papermill.exception is None and (folder / f"training-{job}.0.log").exists()
