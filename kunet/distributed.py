"""The processes of one training: who is here, what they agree on; the only room that talks to torch.distributed.

torchrun tells each process its place by RANK, WORLD_SIZE, LOCAL_RANK; srun by SLURM_PROCID and its like, one task a
process. A process that neither started is alone. Between processes on CPUs gloo carries the data, on GPUs NCCL.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel


class LostProcess(RuntimeError):
    """Another process of this training went away or did not answer in time."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is, over all nodes (rank, size) and on its own (local)."""

    rank: int = 0
    size: int = 1
    local: int = 0


def place() -> Place:
    """Where torchrun or srun put this process. Raises: ValueError when what they say is incomplete."""
    if "RANK" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set inside a step of srun, not in the batch script
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Place()
    try:
        return Place(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError):
        found = ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in names)
        raise ValueError(f"environment: {found}; each must be a number, as torchrun or srun sets them") from None


@dataclass(frozen=True)
class Group:
    """The processes of this training, and what they can do together. Every one of them must call each method."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the processes, the same on all of them to the last bit."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def share(self, value: Any) -> Any:
        """What the first process has, on all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which the first process alone can fail: then all of them leave, the others with LostProcess."""
        failure = None
        try:
            yield
        except (ValueError, OSError) as error:
            failure = error
        (failed,) = self.sum(float(failure is not None))
        if failure is not None:
            raise failure
        if failed:
            raise LostProcess(f"process {self.rank} of {self.size}: the first one failed, and says why")

    def align(self, tensors: list[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, with gradients averaged over the processes in every backward pass."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network, [self.device] if self.device.type == "cuda" else None)


@contextmanager
def join(device: str = "cpu", timeout: float = 600) -> Iterator[Group]:
    """Meet the other processes that torchrun or srun started, and part from them in the end.

    Where a training in this process has met them already, that group is used and kept.

    Args:
        device: "cpu" or "cuda"; with several GPUs on a node each process gets its own.
        timeout: seconds to wait for a process that does not answer.
    Raises: ValueError for an incomplete environment; LostProcess, from the block, when another process is lost.
    """
    here = place()
    if device == "cuda":
        count = torch.cuda.device_count()
        if here.local >= count != 1:
            raise ValueError(f"process {here.local} of this node: there are {count} GPUs; start a process for each")
        index = here.local % count  # srun can show each task its own GPU alone, as number 0
        torch.cuda.set_device(index)
        device = f"cuda:{index}"
    where = torch.device(device)
    begun = here.size > 1 and not dist.is_initialized()
    if begun:
        _meet(here, "nccl" if where.type == "cuda" else "gloo", timeout)
    if dist.is_initialized():
        here = Place(dist.get_rank(), dist.get_world_size(), here.local)
    clean = False
    try:
        yield Group(here.rank, here.size, where)
        clean = True
    except LostProcess:
        raise
    except (RuntimeError, dist.DistError) as error:
        if here.size > 1 and _is_loss(error):
            raise LostProcess(f"process {here.rank} of {here.size}: lost another one ({_first_line(error)})") from None
        raise
    finally:
        if begun and (clean or where.type == "cpu"):  # NCCL would wait for others, which may wait for this one to end
            dist.destroy_process_group()


def _meet(here: Place, backend: str, timeout: float) -> None:
    limit, how = timedelta(seconds=timeout), {"rank": here.rank, "world_size": here.size}
    if "RANK" in os.environ:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    else:  # srun: the step is launched from the node that rank 0 runs on
        host = os.environ.get("MASTER_ADDR") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        where = f"{host}:{os.environ.get('MASTER_PORT') or _port()}"
    try:
        if "TORCHELASTIC_RESTART_COUNT" in os.environ:
            # torchrun keeps one store over all its attempts, in which the addresses of killed processes stay
            store, *_ = next(rendezvous("env://", timeout=limit))
            how["store"] = dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        else:
            how["init_method"] = f"tcp://{where}"
        dist.init_process_group(backend, timeout=limit, **how)
    except (RuntimeError, ValueError) as error:
        raise LostProcess(
            f"process {here.rank} of {here.size}: did not meet the others at {where} ({_first_line(error)}); look"
            " whether all of them started, or set MASTER_ADDR and MASTER_PORT"
        ) from None


def _port() -> int:
    """A port of this attempt of this step alone: processes that a lost node left behind must not answer on it."""
    number = lambda name: int(os.environ.get(name, 0))
    attempt = number("SLURM_JOB_ID") * 97 + number("SLURM_RESTART_COUNT") * 13 + number("SLURM_STEP_ID")
    return 20_000 + attempt % 12_000  # below the ports that Linux gives to outgoing connections


def job() -> str:
    """The job of a scheduler or of torchrun that this process belongs to, over all its attempts; "" outside of any."""
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        if os.environ.get(name, "none") != "none":  # torchrun's own word for "not told"
            return f"{name}={os.environ[name]}"
    return ""


def _is_loss(error: Exception) -> bool:
    words = ("gloo", "Gloo", "NCCL communicator", "NCCL error", "Connection", "timed out", "Timed out", "Broken pipe")
    return isinstance(error, dist.DistError) or any(word in _first_line(error) for word in words)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def mean(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes, which must all call it; the tensor itself where there is only one."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
