"""Models: configuration, loading, losses, attention and adapters.

What every script uses is imported here; the rest comes from the modules.
"""

from utils.models.adapter_checks import check_adapter_arguments
from utils.models.adapters import add_adapter
from utils.models.config import load_config
from utils.models.loading import load_model
from utils.models.losses import use_summed_loss


__all__ = ["add_adapter", "check_adapter_arguments", "load_config", "load_model", "use_summed_loss"]
