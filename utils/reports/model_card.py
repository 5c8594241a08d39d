"""The model card of a training run."""

import math
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import accelerate
import datasets
import tokenizers
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from torch import nn

from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.hub.shown_names import hub_name, shown_name
from utils.models.adapter_usage import usage_snippet
from utils.reports.run_settings import run_settings
from utils.training.trainer import LMTrainer


@dataclass(frozen=True)
class ModelCardText:
    """What the model card says about an objective.

    Attributes:
        auto_class: loads the model, e.g. AutoModelForCausalLM.
        task: the Hub's task tag, e.g. text-generation.
        objective: a sentence that says what the loss is, and so what the perplexity means.
        snippet: Python code that uses `model` and `tokenizer`, which the code before it has loaded, with `{mask}` for
            the mask token.
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
    name = args.hub_model_id or shown_name(str(output_dir))
    corpus = corpus_name(data_args)
    hub_dataset = hub_name(data_args.dataset_name)
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
        eval_results=evaluation_results(trainer, card_text, data_args, results) or None,
    )
    base = model_args.model_name_or_path
    origin = f"`{shown_name(base)}`" if base else "random weights"
    what, preposition = type(trainer.model).__name__, "from"
    if trainer.adapter is not None:
        origin = "random weights, which are saved with it" if trainer.adapter.base is None else origin
        what, preposition = f"The adapter `{trainer.adapter.name}` in {what}", "for"
    versions = {
        "Python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, transformers, datasets, tokenizers, accelerate)},
    }
    loading = loading_snippet(card_text.auto_class)
    if trainer.adapter is not None:
        loading = usage_snippet(trainer.adapter, trainer.model, card_text.auto_class, bool(args.push_to_hub))
    snippet = imports_first(f"{loading}\n\n{card_text.snippet}").replace("{model}", name)
    snippet = snippet.replace("{mask}", trainer.processing_class.mask_token or "")
    shown_results = {key: value for key, value in results.items() if f"eval_{key}" not in results}
    text = f"""---
{metadata.to_yaml()}
---

# {Path(name).name}

{what}, {sizes(trainer.model)}. Trained {preposition} {origin} on {corpus}. {card_text.objective}

## Use

```python
{snippet}
```

## Results

{_table(("result", "value"), shown_results)}

![Training and evaluation loss over the steps](loss.png)

## Training

Text: {corpus}. The flags are in [run_args.yaml](run_args.yaml), which repeats the run.

{_table(("hyperparameter", "value"), run_settings(trainer) | settings)}

## Versions

{_table(("package", "version"), versions)}
"""
    ModelCard(text).save(output_dir / "README.md")


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
    """The source of the text: a dataset on the Hub, or the names of files or a folder, at most five."""
    if data_args.dataset_name and hub_name(data_args.dataset_name):
        return " ".join(filter(None, (data_args.dataset_name, data_args.dataset_config_name)))
    paths = [data_args.dataset_name or data_args.dataset_path]
    if paths == [None]:
        paths = [*(data_args.train_file or []), *(data_args.validation_file or [])]
    names = list(dict.fromkeys(Path(path).name for path in paths))
    return ", ".join(names if len(names) <= 5 else [*names[:4], f"and {len(names) - 4:,} more files"])


def loading_snippet(auto_class: type) -> str:
    """Python code that loads the saved model and its tokenizer, with `{model}` for its folder or repository."""
    name = auto_class.__name__
    return f"""from transformers import {name}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{{model}}")
model = {name}.from_pretrained("{{model}}")"""


def imports_first(code: str) -> str:
    """The same code with its imports at the top."""
    lines = code.splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    rest = "\n".join(line for line in lines if line not in imports).strip()
    return "\n".join([*imports, "", re.sub(r"\n{3,}", "\n\n", rest)])


def sizes(model: nn.Module) -> str:
    """The number of a model's parameters, and of those that were trained if they were not all."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{total:,} parameters" + (f", of which {trained:,} were trained" if trained < total else "")


def evaluation_results(
    trainer: LMTrainer, card_text: ModelCardText, data_args: DataArguments, results: dict[str, float]
) -> list[EvalResult]:
    """The results of the evaluation in the form that the Hub shows, for each evaluation set."""
    names = {"loss": "Loss", "perplexity": "Perplexity", "bits_per_byte": "Bits per byte", "accuracy": "Accuracy"}
    for loss in trainer.losses:
        names |= {f"{loss}_loss": f"{loss.upper()} loss", f"{loss}_accuracy": f"{loss.upper()} accuracy"}
    sets = {"eval_": "validation"}
    if isinstance(trainer.eval_dataset, dict):
        sets = {f"eval_{name}_": name for name in trainer.eval_dataset}
    return [
        EvalResult(
            task_type=card_text.task,
            dataset_type=hub_name(data_args.dataset_name) or "text",
            dataset_name=corpus_name(data_args),
            dataset_config=data_args.dataset_config_name,
            dataset_split=split,
            dataset_revision=data_args.dataset_revision,
            metric_type=key,
            metric_name=name,
            metric_value=results[prefix + key],
        )
        for prefix, split in sets.items()
        for key, name in names.items()
        if math.isfinite(results.get(prefix + key, math.nan))
    ]


def _table(header: tuple[str, str], rows: dict) -> str:
    def formatted(value) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(getattr(value, "value", value))

    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {formatted(value)} |" for key, value in rows.items())])
