"""A run's folder: its recipe, its log, its checkpoints, its weights; what a stopped run continues from.

run/
  recipe.json      what the run was started with
  status           one line: new, running, paused, failed or done, and the step of the last checkpoint
  log.jsonl        one JSON object a line: step, loss, lr, crops a second; validation scores; what happened
  checkpoints/     the last few whole states, each with its checksum (read with weights_only=True)
  best.safetensors, best.json          the averaged weights with the best validation score so far, and their card
  weights.safetensors, weights.json    the averaged weights and their card, when the run is done
  owner.json       which process writes here
  wandb/, wandb_id the mirror of the log on W&B
"""

from kunet.runs.files import write_whole
from kunet.runs.folder import Run
from kunet.runs.weights import load_weights, read_card, save_weights

__all__ = ["Run", "load_weights", "read_card", "save_weights", "write_whole"]
