"""Segmentation: the class of every pixel."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kunet import metrics
from kunet.data import load_masks
from kunet.images import LEVELS, add_noise, check_sigma, unit
from kunet.tasks.batch import Batch

OBJECTIVES = ("cross_entropy", "weighted_cross_entropy", "dice")


@dataclass(kw_only=True)
class Segment:
    """Say of every pixel which of ``classes`` it shows; class 0 is background.

    The model returns logits, one a class. With one class it returns one logit z a pixel, of the foreground:
    the two logits (0, z) mean the same, since their softmax is (1 - sigmoid(z), sigmoid(z)), and are what
    losses and scores see.

    Args:
        classes: background among them; 1 for a single logit.
        objective: "cross_entropy"; "weighted_cross_entropy", each pixel weighted by its class;
            "dice", as ``kunet.metrics.dice_loss``.
        class_weights: those weights, one a class (two for a single logit); None takes pixels / (classes pixels
            of the class), counted over the training examples by ``load``.
        sigma: noise that is added to the images, in 8-bit levels; the model is told.
        size: side of the images: folders' ones are scaled to it (and squeezed), drawn ones drawn at it.
            None leaves folders' as they are.
    Raises: ValueError for an impossible argument.
    """

    classes: int = 3
    objective: str = "cross_entropy"
    class_weights: tuple[float, ...] | None = None
    sigma: float = 0.0
    size: int | None = 128
    measure: ClassVar[str] = "dice"
    on_device: ClassVar[bool] = True
    _counted: tuple[float, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        check_sigma(self.sigma)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}; it must be one of {', '.join(OBJECTIVES)}")
        if not 1 <= self.classes <= LEVELS + 1:
            raise ValueError(f"segment: {self.classes} classes; 1 to {LEVELS + 1} are possible")
        if self.size is not None and self.size < 1:
            raise ValueError(f"segment: size {self.size}; a side of 1 or more pixels, or None")
        given = self.class_weights
        if given is not None and (len(given) != self.labels or min(given) < 0 or not any(given)):
            raise ValueError(f"segment: class_weights {given}; {self.labels} numbers, none negative, not all 0")

    @property
    def labels(self) -> int:
        """How many values the target has: two for a single logit."""
        return max(2, self.classes)

    def load(self, sources: list[str], held_out: int, progress: bool = False) -> tuple[Sequence, list]:
        """(train, held out) examples (H, W, 4) uint8, as ``kunet.data.load_masks`` finds them."""
        train, held = load_masks(sources, held_out, self.classes, self.size, progress)
        if self.objective == "weighted_cross_entropy" and self.class_weights is None:
            self._counted = self._balanced(train)
        return train, held

    def batch(self, crops: Float[Tensor, "B 4 H W"], generator: torch.Generator) -> Batch:
        """A training batch; all its randomness comes from the generator."""
        noisy = add_noise(crops[:, :3], self.sigma, generator) if self.sigma else crops[:, :3]
        level = crops.new_full((len(crops),), float(unit(self.sigma)))
        return Batch(noisy, level, (crops[:, 3:] * LEVELS).round().long())

    def probe(self, crops: Float[Tensor, "B 4 H W"], seed: int) -> Batch:
        """A validation batch: the same noise every time."""
        return self.batch(crops, torch.Generator().manual_seed(seed))

    def fits(self, model: nn.Module) -> None:
        """Raises: ValueError for a model that restores images, even of as many channels, or has other classes."""
        classes = getattr(model, "classes", self.classes)  # a model from elsewhere need not say
        if classes != self.classes:
            what = "restores images" if classes is None else f"returns {classes} logits a pixel"
            raise ValueError(
                f"segment: the model {what}, and the task has {self.classes} classes; make it with as many (model_args:"
                f" {{classes: {self.classes}}}), if it can have any"
            )

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        self.fits(model)
        logits, target = self._logits(model(batch.input, batch.noise_level)), batch.target[:, 0]
        if self.objective == "dice":
            return metrics.dice_loss(logits.softmax(1), target)
        return F.cross_entropy(logits, target, self._weights(logits.device))

    def score(self, model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
        """The Dice overlap of each image, the mean over its classes but background."""
        return metrics.dice(*self._answer(model(batch.input, batch.noise_level), batch))[:, 1:].mean(1)

    def scores(self, output: Float[Tensor, "B K H W"], batch: Batch) -> dict[str, Float[Tensor, " B"]]:
        """Dice and IoU of each image, means over its classes but background."""
        answer = self._answer(output, batch)
        return {"dice": metrics.dice(*answer)[:, 1:].mean(1), "iou": metrics.iou(*answer)[:, 1:].mean(1)}

    def _answer(self, output: Tensor, batch: Batch) -> tuple[Int[Tensor, "B H W"], Int[Tensor, "B H W"], int]:
        return self._logits(output).argmax(1), batch.target[:, 0], self.labels

    def _logits(self, output: Tensor) -> Float[Tensor, "B K H W"]:
        if output.shape[1] != self.classes:
            raise ValueError(
                f"segment: the model returns {output.shape[1]} channels for {self.classes} classes; give the model"
                " the same number of classes"
            )
        output = output.float()
        return output if self.classes > 1 else torch.cat([torch.zeros_like(output), output], 1)

    def _weights(self, device: torch.device) -> Tensor | None:
        if self.objective == "cross_entropy":
            return None
        weights = self.class_weights or self._counted
        if weights is None:
            raise ValueError("segment: the classes are not counted yet; load examples first, or give class_weights")
        return torch.tensor(weights, dtype=torch.float32, device=device)

    def _balanced(self, examples: Sequence[np.ndarray]) -> tuple[float, ...]:
        """One weight a class, in inverse proportion to its pixels; their mean over all pixels is 1."""
        count = sum(np.bincount(example[..., 3].ravel(), minlength=self.labels) for example in examples)
        if not np.all(count):
            raise ValueError(
                f"segment: class {int(np.argmin(count))} is in no training mask; give class_weights or fewer classes"
            )
        return tuple((count.sum() / (self.labels * count)).tolist())
