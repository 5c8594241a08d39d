"""Saving adapters: with what they need beside their base model, and merged into its weights."""

from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.config.adapter_arguments import LANGUAGE_FOLDER, MERGED_FOLDER, MODEL_WEIGHTS
from utils.errors import UsageError
from utils.models.adapters import Adapter, load_weight_file


def save_adapter(model: PreTrainedModel, adapter: Adapter, folder: str | Path) -> None:
    """Save the adapter and the weights it needs in addition to its checkpoint, as safetensors.

    For a model from scratch, these are all weights of the model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Every layer refers to the shared pool of prefixes, and safetensors would store a copy for each.
    layers_with_pool = [module for module in model.modules() if hasattr(module, "set_pool")]
    for layer in layers_with_pool:
        layer.set_pool(None)
    options = {"with_head": False, "use_safetensors": True}
    model.save_adapter(str(folder), adapter.name, **options)
    if adapter.language:
        model.save_adapter(str(folder / LANGUAGE_FOLDER), adapter.language, **options)
    for layer in layers_with_pool:
        layer.set_pool(model.base_model.prefix_tuning)
    if adapter.base is None:
        _save_base_model(model, adapter, folder)
    elif adapter.saved_weights:
        all_weights = model.state_dict()
        weights = {name: all_weights[name].cpu().contiguous() for name in adapter.saved_weights}
        save_file(weights, folder / MODEL_WEIGHTS, metadata={"format": "pt"})


def load_saved_adapter(model: PreTrainedModel, adapter: Adapter, folder: str | Path) -> None:
    """Load the weights that `save_adapter` wrote into a model that has the adapter, to resume training.

    Raises:
        UsageError: the folder does not hold this adapter.
    """
    files = ["adapter.safetensors", *([] if adapter.base else ["model.safetensors"])]
    files += [MODEL_WEIGHTS] if adapter.base and adapter.saved_weights else []
    for name in files:
        path = Path(folder) / name
        if not path.is_file():
            raise UsageError(f"--resume_from_checkpoint {folder}: not a checkpoint of this adapter, {name} is missing")
        load_weight_file(model, path)


def save_merged_model(
    model: PreTrainedModel, adapter: Adapter, tokenizer: PreTrainedTokenizerBase, output_dir: str | Path
) -> None:
    """Save the model with the adapter merged into its weights, for use without the library; `model` is unchanged."""
    folder = Path(output_dir) / MERGED_FOLDER
    model.merge_adapter(adapter.name)
    _save_base_model(model, adapter, folder)
    model.reset_adapter()
    tokenizer.save_pretrained(folder)


def _save_base_model(model: PreTrainedModel, adapter: Adapter, folder: Path) -> None:
    """Save the model as if it had no adapter."""
    weights = {name: weight for name, weight in model.state_dict().items() if name in adapter.base_weights}
    PreTrainedModel.save_pretrained(model, folder, state_dict=weights)
