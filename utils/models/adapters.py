"""Adapters, of the `adapters` library: one is trained instead of the model, and its folder is enough to use it."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from utils.config.adapter_arguments import LANGUAGE_FOLDER, MERGED_FOLDER, MODEL_WEIGHTS, AdapterArguments, safe_name
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.models.adapter_checks import parse_adapter_config
from utils.models.xlnet_adapters import init_xlnet


logger = logging.getLogger(__name__)


@dataclass
class Adapter:
    """An adapter within a model.

    Attributes:
        name: its name, and that of its language adapter, if any.
        base: the checkpoint that it fits; None for a model from scratch, which is saved with it.
        own_weights: names of the model's tensors without adapters, as its own state_dict has them.
        saved_weights: names of those of its parameters that are saved with the adapter.
    """

    name: str
    language: str | None
    base: str | None
    own_weights: set[str]
    saved_weights: list[str]


def add_adapter(
    model: PreTrainedModel,
    new_weights: list[str],
    adapter_args: AdapterArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
) -> Adapter | None:
    """Add or load the adapter that the flags ask for, and make it, and what else was asked for, all that is trained.

    The model keeps its own head. A head that no checkpoint has (one of `new_weights`) is trained and saved with the
    adapter; so are the embeddings with `--train_embeddings`; embeddings that grew are saved.

    Raises:
        UsageError: a kind of adapter that the library cannot add to this model, or an adapter that does not fit it.
    """
    if not adapter_args.train_adapter and not adapter_args.load_adapter:
        return None
    import adapters

    own_weights = set(model.state_dict())
    own_parameters = dict(model.named_parameters())
    new_parameters = [own_parameters[name] for name in new_weights if name in own_parameters]
    flag = f"--adapter_config {adapter_args.adapter_config}"
    try:
        (init_xlnet if model.config.model_type == "xlnet" else adapters.init)(model)
    except ValueError as error:
        raise UsageError(f"--train_adapter: the adapters library has nothing for {model.config.model_type}") from error

    language = None
    folder = adapter_args.folders.get("load_adapter")
    saved_language = Path(folder or "") / LANGUAGE_FOLDER
    if adapter_args.load_lang_adapter:
        language = _load(model, adapter_args.folders["load_lang_adapter"], "load_lang_adapter", None)
    elif adapter_args.load_adapter and saved_language.is_dir():  # under which the adapter was trained
        language = _load(model, str(saved_language), "load_adapter", None)
    if adapter_args.load_adapter:
        flag = f"--load_adapter {adapter_args.load_adapter}"
        name = _load(model, folder, "load_adapter", adapter_args.adapter_name)
    else:
        name = adapter_args.adapter_name or safe_name(_data_name(data_args))
        config = parse_adapter_config(adapter_args.adapter_config)
        _check_method(model, config, adapter_args.adapter_config)
        try:
            model.add_adapter(name, config=config, set_active=True)
        except Exception as error:  # each method checks its sizes in its own way
            raise UsageError(f"{flag}: no such adapter can be made for this model: {error}") from error
    setup = adapters.Stack(language, name) if language else name
    for each in filter(None, (language, name)):
        model.adapter_to(each, dtype=model.dtype)

    # What train_adapter makes trainable in the base is the adapter; the head it leaves as it was.
    model.train_adapter(name)
    model.set_active_adapters(setup)
    of_adapter = {id(parameter) for parameter in _trainable(model).values()} - set(map(id, own_parameters.values()))
    ends = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
    embeddings = [parameter for module in ends for parameter in module.parameters()]
    has_grown = any(parameter is embeddings[0] for parameter in new_parameters)
    also = new_parameters  # of a head without weights
    if adapter_args.train_embeddings:
        also = [*new_parameters, *embeddings]
    elif has_grown:
        also = [parameter for parameter in new_parameters if all(parameter is not other for other in embeddings)]
        logger.warning("adapter: the tokenizer has tokens that the model has not; --train_embeddings trains them")
    for parameter in model.parameters():
        is_trained = id(parameter) in of_adapter or any(parameter is other for other in also)
        parameter.requires_grad_(is_trained and adapter_args.train_adapter)
    saved = {id(parameter) for parameter in (*also, *new_parameters)}
    saved_weights = [key for key, parameter in model.named_parameters() if id(parameter) in saved]
    if _has_prefixes(model) and model.config._attn_implementation != "eager":
        # The library's SDPA attention aligns the causal mask with the prefixes: it gives another, wrong result.
        model.set_attn_implementation("eager")
        logger.info("adapter: attention eager, since there are prefixes")
    _try_forward(model, flag)

    if adapter_args.load_adapter:
        _load_weights(model, Path(folder) / MODEL_WEIGHTS)
    num_trained = sum(parameter.numel() for parameter in _trainable(model).values())
    num_all = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "adapter: %s, %s of %s parameters are trained (%.3g%%)",
        name, f"{num_trained:,}", f"{num_all:,}", 100 * num_trained / num_all,
    )  # fmt: skip
    return Adapter(name, language, model_args.model_name_or_path, own_weights, saved_weights)


def save_adapter(model: PreTrainedModel, adapter: Adapter, folder: str | Path) -> None:
    """Save what the adapter needs beside its base, as safetensors; for a model from scratch the base too."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Each layer refers to the pool of all prefixes, which safetensors would take for as many copies.
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
        _save_own_weights(model, adapter, folder)
    elif adapter.saved_weights:
        all_weights = model.state_dict()
        weights = {name: all_weights[name].cpu().contiguous() for name in adapter.saved_weights}
        save_file(weights, folder / MODEL_WEIGHTS, metadata={"format": "pt"})


def load_saved_adapter(model: PreTrainedModel, adapter: Adapter, folder: str | Path) -> None:
    """Give the model, which has the adapter, the weights that `save_adapter` wrote, as when a training is resumed.

    Raises:
        UsageError: weights of another adapter.
    """
    files = ["adapter.safetensors", *([] if adapter.base else ["model.safetensors"])]
    files += [MODEL_WEIGHTS] if adapter.base and adapter.saved_weights else []
    for name in files:
        path = Path(folder) / name
        if not path.is_file():
            raise UsageError(f"--resume_from_checkpoint {folder}: no {name} there, it is not of this adapter")
        _load_weights(model, path)


def save_merged_model(
    model: PreTrainedModel, adapter: Adapter, tokenizer: PreTrainedTokenizerBase, output_dir: str | Path
) -> None:
    """Save the model with the adapter merged into its weights, for transformers alone. The model stays as it is."""
    folder = Path(output_dir) / MERGED_FOLDER
    model.merge_adapter(adapter.name)
    _save_own_weights(model, adapter, folder)
    model.reset_adapter()
    tokenizer.save_pretrained(folder)


def usage_snippet(adapter: Adapter, model: PreTrainedModel, auto_class: type, is_on_hub: bool = False) -> str:
    """Python code that loads the adapter, with `{model}` for its folder, or its repository if it is on the hub."""
    is_xlnet = model.config.model_type == "xlnet"
    arguments = [f'"{adapter.base}"' if adapter.base else "folder"]
    arguments += ['attn_implementation="eager"'] if _has_prefixes(model) else []
    lines = [
        "import adapters",
        "from huggingface_hub import snapshot_download" if is_on_hub else "",
        "from safetensors.torch import load_file" if adapter.base and adapter.saved_weights else "",
        f"from transformers import {auto_class.__name__}, AutoTokenizer",
        "",
        "from utils.xlnet_adapters import init_xlnet  # a file of the training scripts" if is_xlnet else "",
        'folder = snapshot_download("{model}")' if is_on_hub else 'folder = "{model}"',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto_class.__name__}.from_pretrained({', '.join(arguments)})",
    ]
    embeddings = model.get_input_embeddings()
    if any(parameter is embeddings.weight for parameter in (model.get_parameter(n) for n in adapter.saved_weights)):
        lines.append(f"model.resize_token_embeddings({embeddings.num_embeddings})")
    lines.append("init_xlnet(model)" if is_xlnet else "adapters.init(model)")
    if adapter.language:
        lines.append(f'language = model.load_adapter(folder + "/{LANGUAGE_FOLDER}", use_safetensors=True)')
    lines.append("task = model.load_adapter(folder, use_safetensors=True)")
    lines.append(f"model.set_active_adapters({'adapters.Stack(language, task)' if adapter.language else 'task'})")
    if adapter.base and adapter.saved_weights:
        lines.append(f'model.load_state_dict(load_file(folder + "/{MODEL_WEIGHTS}"), strict=False)')
    return "\n".join(line for i, line in enumerate(lines) if line or i == 4)


class GradientCheck(TrainerCallback):
    """Stops the training after the first backward if something that should be trained gets no gradient."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 0:
            without = [name for name, parameter in _trainable(model).items() if parameter.grad is None]
            if without:
                raise UsageError(f"--train_adapter: no gradient reaches {', '.join(without[:5])}: another kind may do")


def _check_method(model: PreTrainedModel, config, text: str) -> None:
    if model.config.model_type == "xlnet":
        works = "seq_bn, double_seq_bn, par_bn and their settings"
    else:
        works = "seq_bn, double_seq_bn, par_bn, lora, ia3, loreft and prefix_tuning"
    if not model.base_model.supports_adapter(config):
        raise UsageError(f"--adapter_config {text} does not work with {model.config.model_type}; {works} do")


def _load(model: PreTrainedModel, name: str, flag: str, load_as: str | None) -> str:
    try:
        return model.load_adapter(name, load_as=load_as, with_head=False, use_safetensors=True, set_active=True)
    except Exception as error:  # of many types: the name, the network, the files, the shapes
        raise UsageError(f"--{flag} {name}: cannot be loaded into this model: {error}") from error


def _load_weights(model: PreTrainedModel, path: Path) -> None:
    """Load a file that has some of the model's weights; a missing file has none."""
    if not path.is_file():
        return
    try:
        unexpected = model.load_state_dict(load_file(path), strict=False).unexpected_keys
    except (RuntimeError, OSError) as error:
        raise UsageError(f"{path} does not fit the model: {error}") from error
    if unexpected:
        raise UsageError(f"{path} does not fit the model, which has no {', '.join(unexpected[:3])}")


def _save_own_weights(model: PreTrainedModel, adapter: Adapter, folder: Path) -> None:
    """Save the model as if it had no adapter."""
    weights = {name: weight for name, weight in model.state_dict().items() if name in adapter.own_weights}
    PreTrainedModel.save_pretrained(model, folder, state_dict=weights)


def _try_forward(model: PreTrainedModel, flag: str) -> None:
    """Let the library show now, on four tokens, what it cannot do with this model."""
    was_training = model.training
    input_ids = torch.zeros((1, 4), dtype=torch.int64, device=model.device)
    try:
        with torch.no_grad():
            model.eval()(input_ids=input_ids)
    except Exception as error:  # whatever its methods stumble over
        raise UsageError(f"{flag}: the adapters library cannot do this with {model.config.model_type}") from error
    model.train(was_training)


def _has_prefixes(model: nn.Module) -> bool:
    return any(getattr(module, "prefix_tunings", None) for module in model.modules())


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _data_name(data_args: DataArguments) -> str:
    if data_args.dataset_name:
        return data_args.dataset_name
    if data_args.dataset_path:
        return Path(data_args.dataset_path).name
    files = data_args.train_file or data_args.validation_file
    return re.sub(r"\.(txt|csv|tsv|json|jsonl|parquet)(\.\w+)?$", "", Path(files[0]).name)
