"""What a training moves on from step to step, and a checkpoint holds."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kunet.kan import training as kan
from kunet.recipes import Recipe
from kunet.train import plan
from kunet.train.feed import Source, Step


class State:
    """The model, the average of its weights, the optimiser's moments, and where the run is.

    Attributes: done: steps that are done; skipped: of these, the last ones in a row without a finite gradient;
        losses: since the last line of the log; best: step and score of the best validation so far.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self.optimizer = plan.optimizer(model, recipe)
        self.done, self.skipped, self.losses, self.best = 0, 0, [], [0, -math.inf]

    def saved(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; no random state, since all of it is drawn by step."""
        return {
            "step": self.done,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "skipped": self.skipped,
            "best": self.best,
        }

    def load(self, saved: dict[str, Any], recipe: Recipe, folder: Path) -> None:
        """Take up a saved state. Raises: ValueError when it is of another model, or further than the recipe goes."""
        if saved["step"] > recipe.steps:
            raise ValueError(
                f"{folder}: is at step {saved['step']} of {recipe.steps}; give more --steps, or another --out"
            )
        try:
            self.model.load_state_dict(saved["model"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            what = " ".join(str(error).split())[:160]
            raise ValueError(f"{folder}: holds another model ({what}); choose another --out") from None
        self.done, self.losses, self.skipped, self.best = (
            saved[name] for name in ("step", "losses", "skipped", "best")
        )

    def change_kans(self, recipe: Recipe, step: Step, examples: Source, layout: torch.memory_format) -> bool:
        """Grid extension and pruning that fall before this step, on the weights and on their average alike.

        A checkpoint holds grids and masks with the weights, and what decides is the step's whole batch, the same on
        every process, so a continued or shared run does exactly what an unbroken one does.
        Returns: whether anything changed.
        """
        falls = lambda event: step[0] == round(event.at * recipe.steps)
        extensions, prunings = ([event for event in events if falls(event)] for events in (recipe.extend, recipe.prune))
        for event in extensions:
            kan.extend(self.model, event.grid_size, self.optimizer)
            kan.extend(self.average.module, event.grid_size)
        for event in prunings:
            batch = examples.whole(step).to(next(self.model.parameters()).device, layout)
            look = lambda batch=batch: self.model(batch.input, batch.noise_level)
            self.model.eval()  # dropout would draw other numbers on each process, and after each start
            kan.mask_weakest(self.model, self.average.module, event.share, look)
            self.model.train()
        return bool(extensions or prunings)
