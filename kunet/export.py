"""A trained network as a file for other programs: ONNX, or torch's own .pt2; images of any height and width.

Notebook: none; book/use.md shows how such a file is run.
"""

import copy
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet import __version__
from kunet.attention import SelfAttention, WindowAttention
from kunet.images import check_writable
from kunet.models import UKAN, DnCNN, FFDNet, KiT
from kunet.restore import task_of
from kunet.runs import load_weights, write_whole
from kunet.tasks import Denoise
from kunet.weights import find

SUFFIXES = (".onnx", ".pt2")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""How far a value of the file's image, in [0, 1] units, may lie from the network's."""
TRACED = (200, 330)
"""Height and width that the graph is traced at; nothing of them is left in it. More than one window each, and unequal:
whatever happens to agree at the traced size becomes a condition on all sizes."""
ENDLESS = 1 << 20
"""Windows of so many tokens a side hold every map: attention among all tokens."""
MULTIPLES = {DnCNN: 1, FFDNet: 2, UKAN: 32}
"""What the networks that do not say so themselves pad their images to."""


def export(weights: str, path: Path, force: bool = False) -> float:
    """Write a network with its weights to ``path``, run the file, and keep it only if it gives the network's images.

    Inputs: ``noisy`` (1, 3, H, W), float32 in [0, 1] units, and ``level`` (1,), sigma / 255, where the network must be
    told the noise. Output: ``restored``, of noisy's shape, not clamped. The file holds what ``facts`` says: ONNX as
    its metadata, .pt2 as the extra file kunet.json.

    Args:
        weights: released ones by name, or a .safetensors file.
        path: its suffix, .onnx or .pt2, says which.
        force: overwrite it.
    Returns: the largest difference found, at most TOLERANCE.
    Raises: ValueError for a request that cannot be met, or a file that gives other images; nothing is written then.
    """
    check(path, force)
    model, _ = load_weights(find(weights))
    task, args = task_of(weights)
    network = AnySize(model, weights, told=task == "denoise" and not args.get("blind", Denoise.blind))
    inputs = network.inputs(*TRACED)
    height_and_width = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(network, inputs, dynamic_shapes=(height_and_width, None)[: len(inputs)])
            smallest = max([1, *(int(sides.lower) for sides in program.range_constraints.values())])
            smallest = 1 if path.suffix.lower() == ".onnx" else smallest  # its graph does not insist
            about = facts(weights, task, args, network.told, smallest)
            data, run = (_onnx if path.suffix.lower() == ".onnx" else _pt2)(program, about)
    except RuntimeError as error:
        raise ValueError(f"{weights}: torch cannot export this network ({str(error).splitlines()[0]})") from None
    found = 0.0

    def write(temporary: Path) -> None:
        nonlocal found
        temporary.write_bytes(data)
        with torch.no_grad(), _quiet():
            found = difference(network, model, run(temporary), smallest)
        if not found <= TOLERANCE:
            raise ValueError(
                f"{path}: the exported network differs from the trained one by {found:.2g}, more than {TOLERANCE:g};"
                " nothing was written"
            )

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)
    return found


def check(path: Path, force: bool) -> None:
    """Raises: ValueError for a path that cannot be written, or whose format lacks its packages here."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: cannot export {path.suffix or 'a file without a suffix'}; use {' or '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a file")
    if path.exists() and not force:
        raise ValueError(f"{path}: exists already; give another -o, or --force to overwrite it")
    check_writable(path)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if path.suffix.lower() == ".onnx" and missing:
        raise ValueError(f"{path}: needs the package {missing[0]}; pip install 'kunet[export]', or write a .pt2 file")


def facts(weights: str, task: str, args: dict, told: bool, smallest: int) -> dict[str, str]:
    """What a file says about itself."""
    low, high = args.get("sigma", Denoise.sigma)
    told_facts = {
        "level": "sigma / 255, float32, shape (1,)",
        "sigma": f"trained for {low:g} to {high:g}, in 8-bit levels",
    }
    return {
        "name": Path(weights).stem,
        "task": task,
        "noisy": f"(1, 3, height, width), RGB, float32 in [0, 1]; sides of {smallest} or more",
        **(told_facts if told else {}),
        "restored": "of the shape of noisy, float32 in [0, 1] units, not clamped",
        "version": f"kunet {__version__}",
    }


class AnySize(nn.Module):
    """A network in operations that a graph of unknown height and width can hold; the same function.

    It pads before the network does, by an index instead of a loop; attention in windows always has its mask.

    Args:
        model: as ``load_weights`` returns it; it is copied.
        weights: its name, for errors.
        told: whether it takes the noise level.
    Raises: ValueError for networks that no graph can hold.
    """

    def __init__(self, model: nn.Module, weights: str = "model", told: bool = True):
        super().__init__()
        if isinstance(model, KiT):
            raise ValueError(
                f"{weights}: KiT sorts the patches of an image by their hashes, in chunks that depend on its size;"
                " it cannot be exported"
            )
        if model.classes is not None:
            raise ValueError(f"{weights}: says what pixels show; only networks that restore can be exported")
        self.multiple, self.told = MULTIPLES.get(type(model)) or model.multiple, told
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, WindowAttention):
                self.model.set_submodule(name, AnyWindows(module))

    def forward(self, noisy: Float[Tensor, "B C H W"], level: Float[Tensor, "1"] | float = 0.0) -> Tensor:
        height, width = noisy.shape[-2:]
        y = self.model(_reflected(_reflected(noisy, 2, self.multiple), 3, self.multiple), level)
        return _first(_first(y, 2, height), 3, width)

    def inputs(self, height: int, width: int) -> tuple[Tensor, ...]:
        """Some image of that size, and a level where one is needed."""
        noisy = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        return (noisy, torch.tensor([0.1])) if self.told else (noisy,)


class AnyWindows(SelfAttention):
    """WindowAttention with its weights, for maps of unknown size: (B, H, W, D) -> (B, H, W, D).

    Windows always have their full size and at least two stand along each side: torch.export asks whether a number is 1,
    and makes the answer a condition. Windows without a token that is valid give NaN, which is cut off.
    """

    def __init__(self, attention: WindowAttention):
        nn.Module.__init__(self)  # the layers are the other's
        self.heads, self.window, self.qkv, self.out = attention.heads, attention.window, attention.qkv, attention.out

    def forward(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        (batch, height, width, dim), side = x.shape, self.window
        if side >= ENDLESS:
            return super().forward(x.reshape(batch, height * width, dim)).reshape(batch, height, width, dim)
        rows, columns = (torch.sym_max((size + side - 1) // side, 2) for size in (height, width))
        x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
        inside = lambda size, whole: torch.arange(whole, device=x.device) < size
        valid = inside(height, rows * side)[:, None] & inside(width, columns * side)

        def windows(x: Tensor) -> Tensor:  # B, H, W, D -> B windows, tokens, D
            x = x.reshape(x.shape[0], rows, side, columns, side, x.shape[-1])
            return x.transpose(2, 3).reshape(-1, side * side, x.shape[-1])

        y = super().forward(windows(x), windows(valid[None, :, :, None])[..., 0])
        y = y.reshape(batch, rows, columns, side, side, dim).transpose(2, 3)
        return _first(_first(y.reshape(batch, rows * side, columns * side, dim), 1, height), 2, width)


def _reflected(x: Tensor, axis: int, multiple: int) -> Tensor:
    """``kunet.blocks.pad_to_multiple`` along one axis: reflecting again and again is a triangular wave of indices."""
    size = x.shape[axis]
    index = torch.arange((size + multiple - 1) // multiple * multiple, device=x.device)
    # The period is a tensor, since ONNX takes no remainder by a number that depends on a size
    period = torch.full((1,), 2 * size - 2, device=x.device).clamp(min=1)
    index = index % period
    return x.index_select(axis, torch.minimum(index, period - index))


def _first(x: Tensor, axis: int, count: int) -> Tensor:
    """x[:count] along an axis, copied: a view's strides would make sizes that are no multiples a condition."""
    return x.index_select(axis, torch.arange(count, device=x.device))


def difference(network: AnySize, model: nn.Module, run: Callable[..., Tensor], smallest: int) -> float:
    """The largest difference between a file and its network, at a small size and at one of several windows."""
    found = []
    for height, width in ((smallest, smallest + 2), (131, 190)):
        inputs = network.inputs(height, width)
        found.append(float((run(*inputs) - model(*inputs)).abs().max()))
    return max(found, key=lambda value: (math.isnan(value), value))  # NaN is no agreement


def _onnx(program: torch.export.ExportedProgram, about: dict[str, str]) -> tuple[bytes, Callable]:
    """An ONNX file's bytes, and what runs such a file."""
    names = ["noisy", "level"][: len(program.graph_signature.user_inputs)]
    proto = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=names, output_names=["restored"]
    ).model_proto
    del proto.graph.value_info[:]  # shapes between, with names that the tracer made up
    for value in (proto.graph.input[0], proto.graph.output[0]):
        for axis, name in ((2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for key, text in about.items():
        proto.metadata_props.add(key=key, value=text)

    def run(path: Path) -> Callable[..., Tensor]:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feed = lambda inputs: {name: value.numpy() for name, value in zip(names, inputs)}
        return lambda *inputs: torch.from_numpy(session.run(["restored"], feed(inputs))[0])

    return proto.SerializeToString(), run


def _pt2(program: torch.export.ExportedProgram, about: dict[str, str]) -> tuple[bytes, Callable]:
    """A .pt2 file's bytes, and what runs such a file."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"kunet.json": json.dumps(about, indent=1)})
    return buffer.getvalue(), lambda path: torch.export.load(io.BytesIO(path.read_bytes())).module()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
