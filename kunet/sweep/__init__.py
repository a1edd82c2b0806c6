"""Sweeps: many trainings of one recipe over a space of its fields, by any number of workers, without a server.

The space is a sweep file of Weights & Biases (``space``), so that one file serves both. Optuna draws the trials, the
workers train them (``workers``), and share in a folder what they know (``journal``):

sweep/
  journal.log      every trial: number, worker, parameters, score
  results.json     the same to read, replaced as a whole whenever a trial starts or ends
  trial-00007/     a trial's run, as kunet.train leaves it
"""

from kunet.sweep.journal import ranked, results
from kunet.sweep.space import Space, read
from kunet.sweep.workers import run

__all__ = ["Space", "ranked", "read", "results", "run"]
