"""A run's folder: its recipe, its log, its checkpoints, its weights; what a stopped run continues from.

run/
  recipe.json      what the run was started with
  log.jsonl        one JSON object a line: step, loss, lr, seconds; validation scores
  checkpoint.pt    the whole state, replaced as a whole (read with weights_only=True)
  weights.safetensors, weights.json    the averaged weights and their card, when the run is done
"""

from kunet.runs.files import write_whole
from kunet.runs.folder import Run
from kunet.runs.weights import load_weights, save_weights

__all__ = ["Run", "load_weights", "save_weights", "write_whole"]
