"""The SLURM of slurm/local: it does to a job what a cluster does, and leaves nothing behind."""

import os
import subprocess
import sys

import pytest
from cluster import SCRIPT, Cluster, local

# A job that says which run this is and, from the second on, is done.
RUNS = '#!/bin/bash\necho run ${SLURM_RESTART_COUNT:-0}\n[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0\n'
APPEND = "--open-mode=append"  # the output of a requeued job else starts anew


def running(cluster, job):
    """Wait until the job's script has begun to print."""
    cluster.until(lambda: "run 0" in cluster.output(job), 30, lambda: cluster.job(job))


def test_both_nodes_are_idle(cluster):
    cluster.wait_idle()
    assert cluster.run("sinfo", "-h", "-o", "%P %D %T").splitlines() == ["debug* 2 idle", "urgent 2 idle"]


def test_a_job_runs_on_both_nodes(cluster):
    job = cluster.sbatch("#!/bin/bash\nsrun bash -c 'echo $SLURM_NODEID $SLURMD_NODENAME'\n", "--nodes=2", wait=30)
    assert cluster.state(job) == "COMPLETED"
    assert sorted(cluster.output(job).splitlines()) == ["0 n1", "1 n2"]


def test_a_script_file_and_its_exit_code(cluster, tmp_path):
    script = tmp_path / "fails.sh"
    script.write_text("#!/bin/bash\n#SBATCH --job-name=fails\npwd\nexit 75\n")
    job = cluster.sbatch(script, cwd=tmp_path, wait=30)
    found = cluster.job(job)
    assert (found["JobName"], found["JobState"], found["ExitCode"]) == ("fails", "FAILED", "75:0")
    assert (tmp_path / f"slurm-{job}.out").read_text() == f"{tmp_path}\n"


def test_gpus(cluster):
    script = "#!/bin/bash\nsrun bash -c 'echo $CUDA_VISIBLE_DEVICES'\n"
    job = cluster.sbatch(script, "--gres=gpu:a100:4", wait=30)
    assert cluster.output(job).split() == ["0,1,2,3"]
    with pytest.raises(RuntimeError, match="not available"):
        cluster.sbatch(script, "--gres=gpu:a100:5")


def test_an_array_runs_so_many_at_a_time(cluster):
    script = "#!/bin/bash\ndate +%s.%N\nsleep 1\ndate +%s.%N\n"
    job = cluster.sbatch(script, "--array=0-3%2")
    times = []
    for task in (f"{job}_{i}" for i in range(4)):
        assert cluster.wait(task, {"COMPLETED", "FAILED"}) == "COMPLETED"
        times.append([float(word) for word in cluster.output(task).split()])
    assert max(sum(a <= begin < b for a, b in times) for begin, _ in times) == 2


def test_requeue(cluster):
    job = cluster.sbatch(RUNS + "sleep 100\n", APPEND)
    running(cluster, job)
    cluster.scontrol("requeue", job)
    cluster.wait(job, "COMPLETED")
    assert "run 1" in cluster.output(job) and cluster.job(job)["Restarts"] == "1"


def test_urgent_jobs_take_the_nodes(cluster):
    """SLURM asks a job's steps to end (SIGTERM) and, if the job's script goes on, kills and requeues it later.

    What it does with a script that ends when asked depends on its version; one that requeues itself is safe.
    """
    step = "srun bash -c 'trap \"echo asked; exit 0\" TERM; echo ready; for i in {1..500}; do sleep 0.2; done'\n"
    asked = cluster.sbatch(RUNS + step + "scontrol requeue $SLURM_JOB_ID\nsleep 100\n", APPEND, "--nodelist=n1")
    deaf = cluster.sbatch(RUNS + "sleep 100\n", APPEND, "--nodelist=n2")
    cluster.until(lambda: "ready" in cluster.output(asked))
    running(cluster, deaf)
    urgent = cluster.sbatch("#!/bin/bash\n", "--partition=urgent", "--nodes=2", "--exclusive", wait=90)
    assert cluster.state(urgent) == "COMPLETED"
    for job in (asked, deaf):
        cluster.wait(job, "COMPLETED")
        # Perhaps more than twice: it may start, and be pushed aside, while the urgent job waits for the other node.
        assert "run 0" in cluster.output(job) and "run 1" in cluster.output(job)
    assert "asked" in cluster.output(asked) and "asked" not in cluster.output(deaf)


def test_a_job_of_a_lost_node_runs_again_on_the_other(cluster):
    job = cluster.sbatch(RUNS + "srun bash -c 'while sleep 0.2; do date +%s >> beats; done'\n", APPEND)
    running(cluster, job)
    node, beats = cluster.job(job)["NodeList"], cluster.folder / "beats"
    cluster.until(beats.exists)
    cluster.kill_node(node)
    cluster.wait(job, "COMPLETED", 90)
    found = cluster.job(job)
    assert found["Restarts"] == "1" and found["NodeList"] != node
    assert "run 0" in cluster.output(job) and "run 1" in cluster.output(job)
    # The first run is still there, writing, until its node is back.
    size = beats.stat().st_size
    cluster.until(lambda: beats.stat().st_size > size, 5)
    cluster.start_node(node)
    cluster.wait_idle()
    cluster.until(lambda: not any("beats" in local.read(f"/proc/{pid}/cmdline") for pid in pids(cluster)), 15)


def pids(cluster):
    return list(local.slurm_processes(cluster.folder))


def test_stop_leaves_no_process(cluster, tmp_path):
    second = Cluster(tmp_path / "second")
    try:
        # a process that has left the job's process tree, and a step that ignores SIGTERM
        script = "#!/bin/bash\nsetsid sleep 1234 &\nsrun bash -c 'trap \"\" TERM; echo ready; sleep 1234'\n"
        job = second.sbatch(script, "--nodes=2")
        second.until(lambda: second.output(job).count("ready") == 2)
        before = pids(second)
        kinds = [local.read(f"/proc/{pid}/comm").strip() for pid in before]
        # each script and each step on each node has its slurmstepd
        assert (kinds.count("slurmstepd"), kinds.count("slurmd"), kinds.count("sleep")) == (3, 2, 3), kinds
    finally:
        second.stop()
    left = [line for line in (local.read(f"/proc/{pid}/cmdline") for pid in before) if line]
    assert not left, left
    assert not pids(second) and not local.daemons(second.folder)
    cluster.wait_idle()  # the other cluster is untouched


def test_refusals_are_one_line(monkeypatch, tmp_path, capsys):
    bare = {"PATH": "/nowhere"}
    result = subprocess.run([sys.executable, SCRIPT, "start", tmp_path], env=bare, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "apt-get install" in result.stderr
    monkeypatch.setattr(local.shutil, "which", lambda name, path: name)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["cluster.py", "start", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        local.main()
    refusal = capsys.readouterr().err
    assert end.value.code == 2 and "root" in refusal and refusal.count("\n") == 1
