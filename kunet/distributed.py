"""What several processes of one training must agree on; the only room that talks to torch.distributed."""

import torch.distributed as dist
from torch import Tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes, which must all call it; the tensor itself where there is only one."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
