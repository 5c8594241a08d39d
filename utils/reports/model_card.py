"""The model card of a training run."""

import math
import platform
from dataclasses import dataclass
from pathlib import Path

import accelerate
import datasets
import tokenizers
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download

from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.models.adapter_usage import usage_snippet
from utils.training.trainer import LMTrainer


SHOWN_ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "optim", "adam_beta1", "adam_beta2",
    "weight_decay", "max_grad_norm", "per_device_train_batch_size",
    "gradient_accumulation_steps", "world_size", "bf16", "fp16", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class ModelCardText:
    """What the model card says about an objective.

    Attributes:
        auto_class: loads the model, e.g. AutoModelForCausalLM.
        task: the Hub's task tag, e.g. text-generation.
        objective: a sentence that says what the loss is, and so what the perplexity means.
        snippet: Python code that uses the model, with `{model}` for its name and `{mask}` for the mask token. An
            adapter has a snippet of its own.
    """

    auto_class: type
    task: str
    objective: str
    snippet: str


def write_model_card(
    trainer: LMTrainer,
    card_text: ModelCardText,
    model_args: ModelArguments,
    data_args: DataArguments,
    results: dict[str, float],
    settings: dict,
) -> None:
    """Write README.md, the model card, next to the saved model.

    Args:
        results: the contents of all_results.json.
        settings: hyperparameters of the objective.
    """
    args = trainer.args
    output_dir = Path(args.output_dir)
    name = args.hub_model_id or str(output_dir)
    corpus = corpus_name(data_args)
    hub_dataset = hub_name(data_args.dataset_name)
    metrics = {
        "eval_loss": "Loss",
        "perplexity": "Perplexity",
        "bits_per_byte": "Bits per byte",
        "eval_accuracy": "Accuracy",
    }
    for loss in trainer.losses:
        metrics |= {f"{loss}_loss": f"{loss.upper()} loss", f"{loss}_accuracy": f"{loss.upper()} accuracy"}
    eval_results = [
        EvalResult(
            task_type=card_text.task,
            dataset_type=hub_dataset or "text",
            dataset_name=corpus,
            dataset_config=data_args.dataset_config_name,
            dataset_split="validation",
            dataset_revision=data_args.dataset_revision,
            metric_type=key.removeprefix("eval_"),
            metric_name=metrics[key],
            metric_value=results[key],
        )
        for key in metrics
        if math.isfinite(results.get(key, math.nan))
    ]
    base_card = card_of_base(model_args)
    metadata = ModelCardData(
        model_name=Path(name).name,
        library_name="transformers" if trainer.adapter is None else "adapters",
        pipeline_tag=card_text.task,
        tags=["generated-from-trainer", trainer.model.config.model_type],
        datasets=[hub_dataset] if hub_dataset else None,
        base_model=hub_name(model_args.model_name_or_path),
        # A derived model inherits the license of its base; a license with a name of its own has further fields.
        **{key: base_card[key] for key in ("license", "license_name", "license_link") if base_card.get(key)},
        eval_results=eval_results or None,
    )
    origin = f"`{model_args.model_name_or_path}`" if model_args.model_name_or_path else "random weights"
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    what, preposition = type(trainer.model).__name__, "from"
    if trainer.adapter is not None:
        origin = "random weights, which are saved with it" if trainer.adapter.base is None else origin
        what, preposition = f"The adapter `{trainer.adapter.name}` of {what}", "for"
    hyperparameters = {"block_size": trainer.train_dataset.block_size, "steps": trainer.state.max_steps}
    hyperparameters |= settings | {key: getattr(args, key) for key in SHOWN_ARGUMENTS}
    versions = {
        "Python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, transformers, datasets, tokenizers, accelerate)},
    }
    snippet = card_text.snippet.replace("{mask}", trainer.processing_class.mask_token or "")
    if trainer.adapter is not None:
        snippet = usage_snippet(trainer.adapter, trainer.model, card_text.auto_class, bool(args.push_to_hub))
    text = f"""---
{metadata.to_yaml()}
---

# {Path(name).name}

{what}, {num_parameters:,} parameters, trained {preposition} {origin} on {corpus}. {card_text.objective}

## Use

```python
{snippet.replace("{model}", name)}
```

## Results

{_table(("result", "value"), results)}

![Training and evaluation loss over the steps](loss.png)

## Training

Text: {corpus}. The flags are in [run_args.yaml](run_args.yaml), which repeats the run.

{_table(("hyperparameter", "value"), hyperparameters)}

## Versions

{_table(("package", "version"), versions)}
"""
    ModelCard(text).save(output_dir / "README.md")


def hub_name(name: str | None) -> str | None:
    """The name if it is on the Hub, else None: the Hub refuses cards that name a folder as dataset or base model."""
    return None if not name or Path(name).exists() or name.startswith("builtin/") else name


def card_of_base(model_args: ModelArguments) -> dict:
    """The metadata of the base model's card; empty if there is no base, no card, or no access to it."""
    name = model_args.model_name_or_path
    if not name:
        return {}
    try:
        path = Path(name) / "README.md"
        if not Path(name).exists():
            options = {"revision": model_args.model_revision, "token": model_args.token}
            path = hf_hub_download(name, "README.md", cache_dir=model_args.cache_dir, **options)
        return ModelCard.load(path).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def corpus_name(data_args: DataArguments) -> str:
    """The source of the text, as named by the flags."""
    if data_args.dataset_name:
        return " ".join(filter(None, (data_args.dataset_name, data_args.dataset_config_name)))
    if data_args.dataset_path:
        return data_args.dataset_path
    return ", ".join([*(data_args.train_file or []), *(data_args.validation_file or [])])


def _table(header: tuple[str, str], rows: dict) -> str:
    def formatted(value) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(getattr(value, "value", value))

    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {formatted(value)} |" for key, value in rows.items())])
