"""The Python code in an adapter's model card."""

from transformers import PreTrainedModel

from utils.config.adapter_arguments import LANGUAGE_FOLDER, MODEL_WEIGHTS
from utils.hub.shown_names import shown_name
from utils.models.adapters import Adapter, has_prefixes


def usage_snippet(adapter: Adapter, model: PreTrainedModel, auto_class: type, is_on_hub: bool = False) -> str:
    """Python code that loads the model with the adapter, as `model`, and its tokenizer, as `tokenizer`.

    Args:
        auto_class: loads the base model, e.g. AutoModelForCausalLM.
        is_on_hub: whether the adapter is loaded from the Hub and not from a folder.

    Returns:
        The code, with `{model}` as a placeholder for the folder or the repository.
    """
    is_xlnet = model.config.model_type == "xlnet"
    has_model_weights = bool(adapter.base and adapter.saved_weights)
    arguments = [f'"{shown_name(adapter.base)}"' if adapter.base else "folder"]
    arguments += ['attn_implementation="eager"'] if has_prefixes(model) else []
    embeddings = model.get_input_embeddings()
    imports = [
        "import adapters",
        "from huggingface_hub import snapshot_download" if is_on_hub else "",
        "from safetensors.torch import load_file" if has_model_weights else "",
        f"from transformers import {auto_class.__name__}, AutoTokenizer",
    ]
    lines = [
        "from utils.xlnet_adapters import init_xlnet  # a file of the training scripts" if is_xlnet else "",
        'folder = snapshot_download("{model}")' if is_on_hub else 'folder = "{model}"',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto_class.__name__}.from_pretrained({', '.join(arguments)})",
    ]
    if any(model.get_parameter(name) is embeddings.weight for name in adapter.saved_weights):
        lines.append(f"model.resize_token_embeddings({embeddings.num_embeddings})")
    lines.append("init_xlnet(model)" if is_xlnet else "adapters.init(model)")
    if adapter.language:
        lines.append(f'language = model.load_adapter(folder + "/{LANGUAGE_FOLDER}", use_safetensors=True)')
    lines.append("task = model.load_adapter(folder, use_safetensors=True)")
    lines.append(f"model.set_active_adapters({'adapters.Stack(language, task)' if adapter.language else 'task'})")
    if has_model_weights:
        lines.append(f'model.load_state_dict(load_file(folder + "/{MODEL_WEIGHTS}"), strict=False)')
    return "\n".join([*filter(None, imports), "", *filter(None, lines)])
