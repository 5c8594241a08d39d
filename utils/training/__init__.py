"""The training run: trainer, evaluation, checkpoints, signals and logging.

What every script uses is imported here; the rest comes from the modules.
"""

from utils.training.metric import load_metric
from utils.training.output_dir import find_checkpoint
from utils.training.trainer import LMTrainer


__all__ = ["LMTrainer", "find_checkpoint", "load_metric"]
