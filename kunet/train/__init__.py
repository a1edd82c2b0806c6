"""Training: one readable loop for every model and task, on one process or many, resumable bit for bit.

All randomness is a function of (seed, step) or (seed, number of the crop): which crops, their noise, dropout. So a
checkpoint holds no random state, and more processes only split each step's crops among them: the training is the
same. ``plan`` says what each step is, ``feed`` brings its crops, ``loop`` takes it.
Notebooks: notebooks/14_training.ipynb, notebooks/15_many_processes.ipynb.
"""

from kunet.train.loop import train
from kunet.train.plan import MAY_CHANGE, build, learning_rate, schedule
from kunet.train.validate import validate

__all__ = ["MAY_CHANGE", "build", "learning_rate", "schedule", "train", "validate"]
