"""The flags: one dataclass per group, and the parser that reads them.

What every script uses is imported here; the rest comes from the modules.
"""

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.config.training_arguments import LMTrainingArguments


__all__ = ["AdapterArguments", "DataArguments", "LMTrainingArguments", "ModelArguments"]
