"""A mirror of a run's log on Weights & Biases, online or as files that ``wandb sync run/wandb/*run-*`` sends later.

The run's own log.jsonl is the record: a killed process loses the mirror's last seconds, never a line of the log. So
whatever goes wrong here ends in one line on stderr, and the training goes on.

run/
  wandb_id    the id of the one W&B run that belongs to the folder, however often it is started again
  wandb/      all that W&B writes: a folder for each start, its caches
"""

import os
import re
import secrets
import string
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kunet.images import to_uint8
from kunet.runs.files import write_whole

MODES = ("auto", "offline", "online", "off")

INIT_TIMEOUT = 15.0
"""Seconds that a server may take to answer when a run starts; after them the run is mirrored offline."""
CLOSE_TIMEOUT = 20.0
"""Seconds that a run's end waits for uploads, less than a cluster leaves to a job that it stops."""
PATIENCE = 30.0
"""Seconds after which any call into W&B is given up: its own limits do not cover all that can hang."""
SHOWN = 4
"""Images of a batch that are shown."""
OFF = "the run goes on without W&B, its record is log.jsonl"


class Tracker:
    """What a training tells W&B. A method returns within PATIENCE and raises nothing; after one failure all are silent.

    Without a ``run`` of W&B it does nothing.
    """

    def __init__(self, folder: Path, run: Any = None):
        self.folder = folder
        self._run = run
        self._failed = False

    @property
    def on(self) -> bool:
        """Whether anything is mirrored."""
        return self._run is not None and not self._failed

    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers at a step. It may come again after a resume: it is an axis of ours, so W&B keeps both rows."""
        self._try("log", lambda run: run.log({**values, "step": step}))

    def images(self, step: int, noisy: Tensor, restored: Tensor, clean: Tensor) -> None:
        """The first images of a batch, side by side; each (B, 3, H, W) in [0, 1], one of another shape is left out."""

        def send(run) -> None:
            from wandb import Image

            shown = [x[:SHOWN].detach().float().cpu() for x in (noisy, restored, clean) if x.shape == noisy.shape]
            panels = [Image(to_uint8(panel), caption="noisy | restored | clean") for panel in torch.cat(shown, dim=-1)]
            run.log({"images": panels, "step": step})

        self._try("images", send)

    def weights(self, path: Path, name: str) -> None:
        """Weights (safetensors), and their JSON card where there is one, as an artifact of type "model"."""

        def send(run) -> None:
            from wandb import Artifact

            artifact = Artifact(re.sub(r"[^\w.-]", "-", name), type="model")
            with _environment(self.folder):
                for file in filter(Path.exists, (path, path.with_suffix(".json"))):
                    artifact.add_file(str(file), skip_cache=True)  # a copy: the file may be replaced before a sync
                logged = run.log_artifact(artifact)
            if not run.offline:
                logged.wait(timeout=int(CLOSE_TIMEOUT))  # else a failed upload is not heard of

        self._try("weights", send)

    def close(self, exit_code: int = 0) -> None:
        """Wait up to CLOSE_TIMEOUT for uploads and end the W&B run; 0 says that the training ended well."""
        self._try("close", lambda run: run.finish(exit_code=exit_code), last=True)
        self._run = None

    def _try(self, what: str, call: Callable[[Any], Any], last: bool = False) -> None:
        if self._run is None or (self._failed and not last):  # even a broken run is ended, or W&B waits at exit
            return
        try:
            _within(PATIENCE, lambda: call(self._run))
        except RuntimeError as error:
            if not self._failed:
                _warn(f"{what} failed ({error}); {OFF}")
            self._failed = True


def open_tracker(folder: Path, name: str, config: dict, mode: str = "auto") -> Tracker:
    """The mirror of the run in a folder; opened again, it continues the same W&B run.

    Args:
        name: shown on W&B; the project is WANDB_PROJECT, or "kunet".
        config: what the run was started with.
        mode: "online", "offline" or "off"; "auto" is off where wandb is not installed or WANDB_MODE is "disabled",
            online where there is a WANDB_API_KEY and WANDB_MODE is not "offline", else offline. None asks for an
            account. A server that refuses, or does not answer within INIT_TIMEOUT, makes it offline.
    Raises: ValueError for an unknown mode, for "offline" or "online" without wandb, for "online" without a key.
    """
    check(mode)
    wish, key = os.environ.get("WANDB_MODE", ""), os.environ.get("WANDB_API_KEY", "")
    if mode == "off" or (mode == "auto" and wish == "disabled"):
        return Tracker(folder)
    try:
        import wandb
        from wandb import Settings  # noqa: F401  not in a mere folder "wandb", which W&B makes and Python imports
    except ImportError:
        if mode == "auto":
            return Tracker(folder)
        raise ValueError(f"W&B mode {mode!r} needs wandb: pip install 'kunet[cluster]'") from None
    except Exception as error:  # one of its own dependencies is of another version
        _warn(f"import failed ({type(error).__name__}); {OFF}")
        return Tracker(folder)
    if mode == "online" and not key:
        raise ValueError("W&B mode 'online' needs a key: set WANDB_API_KEY, or choose offline")
    if mode == "auto":
        if wish == "online" and not key:
            _warn("WANDB_MODE is online, but no WANDB_API_KEY is set; mirrored offline")
        mode = "online" if key and wish in ("", "online") else "offline"
    for way in ("online", "offline") if mode == "online" else ("offline",):
        try:
            return Tracker(folder, _within(PATIENCE, partial(_start, wandb, folder, name, config, way)))
        except RuntimeError as error:
            _warn(f"{way} failed ({error}); {'mirrored offline' if way == 'online' else OFF}")
    return Tracker(folder)


def check(mode: str) -> None:
    """Raises: ValueError for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"W&B mode {mode!r}; must be one of {', '.join(MODES)}")


def _start(wandb, folder: Path, name: str, config: dict, mode: str):
    kept = folder / "wandb_id"
    if not kept.exists():
        drawn = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
        run_id = os.environ.get("WANDB_RUN_ID") or drawn  # an agent of a W&B sweep names its runs itself
        write_whole(kept, lambda path: path.write_text(run_id + "\n"))
    wanted = {"console": "off", "silent": True, "quiet": True, "disable_git": True, "disable_code": True}
    wanted |= {"x_disable_meta": True}  # host name, user, command line; system metrics stay on
    wanted |= {"init_timeout": INIT_TIMEOUT, "finish_timeout": CLOSE_TIMEOUT, "finish_timeout_raises": True}
    known = {field: value for field, value in wanted.items() if field in wandb.Settings.model_fields}
    with _environment(folder):
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "kunet",
                dir=folder.resolve(),
                id=kept.read_text().strip(),
                name=name,
                config=config,
                mode=mode,
                resume="allow",
                reinit="create_new",  # beside a run that a notebook may have open
                settings=wandb.Settings(**known),
            )
        except Exception:
            wandb.teardown()  # a failed start would hold the id
            raise
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What wandb takes from the environment alone: no messages, no reports of errors, caches in the run's folder."""
    inside = folder.resolve() / "wandb"
    wanted = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    wanted |= {"WANDB_CACHE_DIR": str(inside / "cache"), "WANDB_DATA_DIR": str(inside / "data")}
    added = wanted.keys() - os.environ.keys()
    os.environ.update({key: wanted[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What ``call`` returns. Raises: RuntimeError, one short line without the key, when it raises or takes longer."""
    outcome: dict[str, Any] = {"error": f"no answer in {seconds:g} s"}

    def work() -> None:
        try:
            outcome.update(value=call(), error=None)
        except BaseException as error:
            text = " ".join(str(error).split()) or type(error).__name__
            key = os.environ.get("WANDB_API_KEY")
            outcome["error"] = (text.replace(key, "***") if key else text)[:200]

    thread = threading.Thread(target=work, daemon=True)  # a daemon: one that never returns does not hold the exit
    thread.start()
    thread.join(seconds)
    if outcome["error"] is not None:
        raise RuntimeError(outcome["error"])
    return outcome["value"]


def _warn(what: str) -> None:
    print(f"kunet: W&B: {what}", file=sys.stderr)
