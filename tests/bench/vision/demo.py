"""The demo's encoder, tasks and training, for this suite. They are neighbours of a script, and import by bare names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "deploy" / "demo"))

from checkpoint import from_weights, save
from model import Encoder
from tasks import Examples, Task, load_images, make_tasks
from training import Head, accuracy, fine_tune, fine_tuning_steps, pretrain, probe

sys.path.pop(0)

__all__ = [
    "Encoder",
    "Examples",
    "Head",
    "Task",
    "accuracy",
    "fine_tune",
    "fine_tuning_steps",
    "from_weights",
    "load_images",
    "make_tasks",
    "pretrain",
    "probe",
    "save",
]
