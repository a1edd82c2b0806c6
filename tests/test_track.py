"""The mirror on Weights & Biases: what it writes and sends, and that it never ends or holds up a training."""

import gzip
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from kunet.runs import track
from kunet.runs.track import Tracker, open_tracker

KEY = "c0ffee" * 6 + "beef"
"""The API key, 40 characters that must be found nowhere."""


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A home of its own, W&B's variables unset but for the key, and no W&B session left behind."""
    for name in list(track.os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def records(path):
    """The messages of a .wandb file: a log of LevelDB's, blocks of 32 KiB after a header of 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # a run's end does not wait until the file's last bytes are on the disk
    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a full record, or the last part of one
            yield Record.FromString(whole)
            whole = b""
        if 32768 - at % 32768 < 7:  # no room for another header: padding
            at += 32768 - at % 32768


def items(message) -> dict:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in message}


def hidden(folder, capfd) -> str:
    """What was printed, once it is sure that neither it nor a file holds the key."""
    printed = "".join(capfd.readouterr())
    assert KEY not in printed
    for path in folder.parent.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    return printed


def test_offline(folder, tmp_path, monkeypatch, capfd):
    """Two starts: one run, every row, images, weights; all in the folder, nothing printed, no name of the machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"numbers")
    weights.with_suffix(".json").write_text("{}")
    noisy = torch.rand(6, 3, 8, 10)
    for steps in ((1, 2, 3), (2, 3, 4)):  # the second continues from a checkpoint at step 1
        tracker = open_tracker(folder, "tiny", {"lr": 0.001, "model_args": {"width": 8}})
        for step in steps:
            tracker.log(step, {"loss": 1 / step})
        tracker.images(steps[-1], noisy, noisy, noisy[:, :1])  # a target of another kind is left out
        tracker.images(steps[-1], noisy, noisy, noisy)
        tracker.weights(weights, "tiny, 8 wide")
        tracker.close()
    run_id = (folder / "wandb_id").read_text().strip()
    assert re.fullmatch("[a-z0-9]{8}", run_id)
    files = sorted((folder / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    for path, steps in zip(files, ((1, 2, 3), (2, 3, 4))):
        found = list(records(path))
        run = next(r.run for r in found if r.HasField("run"))
        assert (run.project, run.run_id, run.display_name) == ("kunet", run_id, "tiny")
        config = items(run.config.update)
        assert config["lr"] == 0.001 and config["model_args"] == {"width": 8}
        assert {r.metric.name or r.metric.glob_name: r.metric.step_metric for r in found if r.HasField("metric")} == {
            "step": "",
            "*": "step",
        }
        rows = [items(r.history.item) for r in found if r.HasField("history")]
        assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [(step, 1 / step) for step in steps]
        sizes = [
            [row[f"images.{key}"] for key in ("count", "height", "width")] for row in rows if "images._type" in row
        ]
        assert sizes == [[4, 8, 20], [4, 8, 30]]
        artifact = next(r.artifact for r in found if r.HasField("artifact"))
        assert (artifact.type, artifact.name) == ("model", "tiny--8-wide")
        kept = {entry.path: entry.local_path for entry in artifact.manifest.contents}
        assert set(kept) == {"weights.safetensors", "weights.json"}
        assert all(file.startswith(str(folder / "wandb")) for file in kept.values())
    assert not list(folder.rglob("wandb-metadata.json"))
    assert hidden(folder, capfd) == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as one run and its weights need."""

    def log_message(self, *_):
        pass

    def graphql(self, operation: str, given: dict) -> dict:
        url = lambda name: {"name": name, "uploadUrl": f"{self.server.url}/{name}", "uploadHeaders": []}
        project = {"id": "cA==", "internalId": "MQ==", "name": "kunet", "entity": {"id": "ZQ==", "name": "someone"}}
        bucket = {"id": "aWQ=", "name": given.get("name"), "displayName": "", "config": "{}", "project": project}
        artifact = {"id": "YQ==", "state": "COMMITTED", "digest": "", "commitHash": "", "versionIndex": 0, "size": 7}
        artifact |= {"artifactType": {"name": "model"}, "fileCount": 1, "createdAt": "2026-01-01T00:00:00Z", "tags": []}
        artifact |= {"artifactSequence": {"__typename": "ArtifactSequence", "name": "tiny", "project": project}}
        artifact |= dict.fromkeys(("description", "metadata", "historyStep", "updatedAt"))
        artifact |= {"ttlDurationSeconds": -1, "ttlIsInherited": False, "aliases": []}
        names = [file["name"] for file in given.get("input", {}).get("artifactFiles", [])]
        edges = [{"node": {**url(name), "artifact": artifact, "uploadMultipartUrls": None}} for name in names]
        return {
            "Viewer": {"viewer": {"id": "dQ==", "entity": "someone", "flags": "{}", "teams": {"edges": []}}},
            "RunResumeStatus": {"model": None},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "aWQ=", "files": [*map(url, given.get("files", []))]}},
            "ArtifactType": {"project": None},
            "CreateArtifact": {
                "createArtifact": {
                    "artifact": {"id": "YQ==", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
                }
            },
            "CreateArtifactManifest": {
                "createArtifactManifest": {
                    "artifactManifest": {"id": "bQ==", "file": {"id": "Zg==", **url("manifest")}}
                }
            },
            "CreateArtifactFiles": {"createArtifactFiles": {"files": {"edges": edges}}},
            "CommitArtifact": {"commitArtifact": {"artifact": artifact}},
            "ArtifactByID": {"artifact": {"__typename": "Artifact", **artifact}},
        }.get(operation, {})

    def do_POST(self):
        body, answer = self.rfile.read(int(self.headers["Content-Length"] or 0)), {}
        if self.path == "/graphql":
            request = json.loads(body)
            operation = re.search(r"(query|mutation) (\w+)", request["query"])[2]
            answer = {"data": self.graphql(operation, request.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            sent = json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
            rows = sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.rows += map(json.loads, rows)
            self.server.ended = sent.get("exitcode", self.server.ended)
        else:
            self.server.files[self.path] = body
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_PUT = do_POST


def test_online(folder, monkeypatch, capfd):
    """A server takes every row, the images, the weights and how the run ended; the key is in no file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.url, server.rows, server.files, server.ended = f"http://127.0.0.1:{server.server_port}", [], {}, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    tracker = open_tracker(folder, "tiny", {"lr": 0.001})
    for step in (1, 2, 2):
        tracker.log(step, {"loss": 1 / step})
    tracker.images(2, *torch.rand(3, 1, 3, 8, 8))
    (folder / "weights.safetensors").write_bytes(b"numbers")
    tracker.weights(folder / "weights.safetensors", "tiny")
    tracker.close(exit_code=3)
    server.shutdown()
    server.server_close()
    assert hidden(folder, capfd) == ""
    assert [(row["step"], row["loss"]) for row in server.rows if "loss" in row] == [(1, 1), (2, 0.5), (2, 0.5)]
    assert server.ended == 3
    assert server.files["/weights.safetensors"] == b"numbers"
    assert [path for path in server.files if path.startswith("/media/images/")]
    assert not any(KEY.encode() in body for body in server.files.values())


def test_no_network(folder, monkeypatch, capfd):
    """A server that cannot be reached holds a start up for INIT_TIMEOUT and little more; then the run is offline."""
    monkeypatch.setattr(track, "INIT_TIMEOUT", 1.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    begin = time.perf_counter()
    tracker = open_tracker(folder, "tiny", {}, mode="online")
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert time.perf_counter() - begin < 10
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    assert [items(r.history.item)["loss"] for r in records(path) if r.HasField("history")] == [1.0]
    printed = hidden(folder, capfd)
    assert re.fullmatch(r"kunet: W&B: online failed \(.*\); mirrored offline\n", printed)


class Broken:
    """A run of W&B that raises, with the key in its message, or never answers."""

    def __init__(self, wait: float = 0.0):
        self.wait, self.calls = wait, []

    def __getattr__(self, name):
        def call(*_, **__):
            self.calls.append(name)
            time.sleep(self.wait)
            raise OSError(f"no space left\nfor {KEY}")

        return call


@pytest.mark.parametrize("wait, reason", [(0.0, r"no space left for \*\*\*"), (1.0, "no answer in 0.1 s")])
def test_a_failure_is_one_warning(folder, monkeypatch, capfd, wait, reason):
    monkeypatch.setattr(track, "PATIENCE", 0.1)
    tracker = Tracker(folder, run := Broken(wait))
    begin = time.perf_counter()
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    tracker.images(3, *torch.rand(3, 1, 3, 4, 4))
    tracker.close()
    tracker.log(4, {"loss": 1.0})
    assert time.perf_counter() - begin < 0.9
    assert run.calls == ["log", "finish"]
    assert re.fullmatch(rf"kunet: W&B: log failed \({reason}\); the run goes on .*\n", hidden(folder, capfd))


def test_off(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for mode in ("off", "auto"):
        tracker = open_tracker(folder, "tiny", {}, mode)
        tracker.log(1, {"loss": 1.0})
        tracker.images(1, *torch.rand(3, 1, 3, 4, 4))
        tracker.weights(folder / "weights.safetensors", "tiny")
        tracker.close()
    assert not list(folder.iterdir())


def test_not_installed(folder, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "wandb", None)
    open_tracker(folder, "tiny", {}).log(1, {"loss": 1.0})
    assert not list(folder.iterdir()) and hidden(folder, capfd) == ""
    for mode in ("offline", "online"):
        with pytest.raises(ValueError, match=rf"W&B mode '{mode}' needs wandb: pip install 'kunet\[cluster\]'$"):
            open_tracker(folder, "tiny", {}, mode)


def test_refused(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"W&B mode 'on'; must be one of auto, offline, online, off$"):
        open_tracker(folder, "tiny", {}, "on")
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ValueError, match=r"W&B mode 'online' needs a key: set WANDB_API_KEY, or choose offline$"):
        open_tracker(folder, "tiny", {}, "online")
