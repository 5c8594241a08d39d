"""The model: from a checkpoint or from scratch, fitted to the tokenizer, with a loss that sums over its targets."""

import contextlib
import functools
import inspect
import logging
import pickle
import types
from collections.abc import Iterator

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import ModelOutput

from utils.config.arguments import ModelArguments
from utils.config.parser import UsageError
from utils.hub.errors import explain
from utils.models.model_config import hub_options, max_positions


logger = logging.getLogger(__name__)

# Models whose attention is causal and full, through transformers' attention interface: tested to give the same loss
# without a mask, see use_maskless_attention().
MASKLESS_MODELS = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3")
# The first module of the head that predicts tokens, of models whose heads take rows as well as a batch: each tested.
PREDICTION_HEADS = {
    "albert": "predictions", "bert": "cls", "camembert": "lm_head", "convbert": "generator_predictions",
    "data2vec-text": "lm_head", "deberta": "cls", "deberta-v2": "cls", "distilbert": "vocab_transform",
    "electra": "generator_predictions", "ernie": "cls", "esm": "lm_head", "megatron-bert": "cls",
    "mobilebert": "cls", "modernbert": "head", "mpnet": "lm_head", "roberta": "lm_head",
    "roberta-prelayernorm": "lm_head", "roformer": "cls", "xlm-roberta": "lm_head", "xlm-roberta-xl": "lm_head",
    "xlnet": "lm_loss",
}  # fmt: skip
ROWS_SCORED_AT_ONCE = 64  # x 50,000 pieces x 4 bytes = 13 MB: stays in a CPU's cache between the passes over it


def load_model(
    auto_class: type, config: PretrainedConfig, model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Load `--model_name_or_path`, or build the model from `config` with new weights, to fit the tokenizer.

    From scratch, the vocabulary's size and the special tokens' ids follow the tokenizer unless `--config_overrides`
    names them, and a tokenizer that was trained for the model gives only what its `forward` takes. A checkpoint's
    embeddings grow when the tokenizer has more tokens; they never shrink.

    Args:
        auto_class: for instance AutoModelForCausalLM.
        config: from `load_config`, which checked it.

    Returns:
        The model, with a list `new_weights`: the names of the parameters that the checkpoint does not have, or not in
        this size; empty for a model from scratch.

    Raises:
        UsageError: no weights, weights that do not fit or are not plain tensors, or a vocabulary that is too small.
    """
    dtype = model_args.dtype if model_args.dtype == "auto" else getattr(torch, model_args.dtype)
    options, attention = {}, ""
    if model_args.attn_implementation is not None:
        options["attn_implementation"] = model_args.attn_implementation
        attention = f" --attn_implementation {model_args.attn_implementation}"
    num_tokens = max(tokenizer.get_vocab().values()) + 1
    if model_args.model_name_or_path:
        try:
            model, loading_info = auto_class.from_pretrained(
                model_args.model_name_or_path,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                **options,
                **hub_options(model_args),
            )
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
            name = model_args.model_name_or_path
            raise UsageError(f"--model_name_or_path {name}{attention}: {explain(error, name)}") from error
        new_weights = sorted(loading_info["missing_keys"])
        if new_weights:
            untrained = sorted({name.split(".")[0] for name in new_weights})
            logger.info(
                "model: %s has no weights for %s of %s, which start untrained",
                model_args.model_name_or_path, ", ".join(untrained), type(model).__name__,
            )  # fmt: skip
        if num_tokens > model.get_input_embeddings().num_embeddings:
            logger.info(
                "model: embeddings grow from %s to %s", model.get_input_embeddings().num_embeddings, num_tokens
            )
            model.resize_token_embeddings(num_tokens)
            ends = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
            grown = {id(weight) for module in ends for weight in module.parameters()}
            new_weights += [name for name, weight in model.named_parameters() if id(weight) in grown]
    else:
        new_weights = []
        fit_config_to_tokenizer(config, tokenizer, num_tokens, model_args.config_overrides)
        if dtype != "auto":
            options["dtype"] = dtype
        try:
            model = auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code, **options)
        except (ValueError, ImportError) as error:
            raise UsageError(f"--model_type {config.model_type}{attention}: {error}") from error
    if model_args.train_tokenizer:  # DistilBERT, for one, takes no token_type_ids
        accepted = inspect.signature(type(model).forward).parameters
        names = [name for name in tokenizer.model_input_names if name in accepted]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    model.new_weights = new_weights
    _use_fast_gelu(model)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "model: %s, %s parameters, %s, attention %s",
        type(model).__name__, f"{num_parameters:,}", model.dtype, model.config._attn_implementation,
    )  # fmt: skip
    return model


def fit_config_to_tokenizer(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, num_tokens: int, overrides: str | None
) -> None:
    """Give the configuration the tokenizer's vocabulary size and special ids, but for those that the user set."""
    overridden = {item.split("=")[0].strip() for item in (overrides or "").split(",")}
    if "vocab_size" not in overridden:
        config.vocab_size = num_tokens
    elif config.vocab_size < num_tokens:
        raise UsageError(
            f"--config_overrides vocab_size={config.vocab_size}: the tokenizer has {num_tokens} tokens; leave it out"
        )
    usable_positions = max_positions(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name not in overridden:
            setattr(config, name, getattr(tokenizer, name))
    for name in ("cls_token_id", "sep_token_id", "mask_token_id"):
        if name not in overridden and getattr(config, name, None) is not None:
            setattr(config, name, getattr(tokenizer, name))
    num_lost = usable_positions - max_positions(config) if usable_positions else 0  # below the padding token's id
    if num_lost > 0 and "max_position_embeddings" in overridden:
        raise UsageError(
            f"--config_overrides max_position_embeddings={config.max_position_embeddings}: the positions start after "
            f"the tokenizer's padding token, {config.pad_token_id}: give {config.max_position_embeddings + num_lost}"
        )
    if num_lost:
        config.max_position_embeddings += num_lost


def use_summed_loss(model: PreTrainedModel, shift: bool, label_smoothing: float = 0.0) -> None:
    """Give the model a `forward` that, with labels, returns the sum of the negative log-likelihoods of its targets.

    The plain forward divides by a count of its own, so that a mean over several batches, accumulation steps or
    processes is a mean of means; of sums, LMTrainer makes the exact one. It also returns all logits, which mixed
    precision then copies to float32. This one returns no logits, builds no KV cache (in XLNet: mems), and all of it
    happens inside `forward`, where DDP and FSDP expect it. Without labels, as in generation, nothing is changed.

    Where each position predicts its own label (in XLNet: each row of `target_mapping`), the vocabulary head runs at
    the targets only, which are few: a pre-hook on its first module, there for the time of one forward, selects their
    rows. The logits then have the shape (targets, vocabulary). The loss is the same, since a head looks at each
    position alone.

    With `labels` (batch, length) int64, -100 where there is no target, the output is a dict of:
        loss: the summed loss in nats; in training a float32 scalar, with `label_smoothing` as torch's cross_entropy
            defines it; in evaluation a float64 scalar.
    And in evaluation, which runs without mixed precision unless called with `autocast_dtype`, what `score` returns.

    A model of two heads (BertForPreTraining and its like) is given `next_sentence_label` (batch,) int64 too, 0 or 1.
    Then the loss, and the counts in evaluation, have the shape (2,), of the tokens and of the sentences, each to be
    divided by its own number of targets. Predictions and references are those of the tokens.

    Args:
        shift: position t predicts `labels[:, t + 1]` (causal models) and not `labels[:, t]`.
        label_smoothing: share of a target token's probability that is spread over the vocabulary, in training.
    """
    head = None if shift else _prediction_head(model)
    forward_signature = inspect.signature(type(model).forward)
    loss_options = {name: False for name in ("use_cache", "use_mems") if name in forward_signature.parameters}

    def forward(
        self,
        *args,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        return_predictions: bool = False,
        autocast_dtype: torch.dtype | None = None,
        **kwargs,
    ):
        plain_forward = functools.partial(type(self).forward, self, *args, **kwargs)
        if labels is None:
            return plain_forward()
        if shift:
            labels = pad(labels[:, 1:], (0, 1), value=-100)
        with contextlib.ExitStack() as stack:
            if head is not None:
                is_target = labels != -100
                labels = labels[is_target]
                stack.enter_context(_rows_selected(self.get_submodule(head), is_target))
            if self.training:
                logits, sentence_logits = _logits_of(plain_forward(**loss_options))
                logits = logits.flatten(0, -2).float()
                loss = cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=label_smoothing)
                if next_sentence_label is not None:
                    sentence_loss = cross_entropy(sentence_logits.float(), next_sentence_label, reduction="sum")
                    loss = torch.stack([loss, sentence_loss])
                return {"loss": loss}
            with torch.autocast(labels.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                logits, sentence_logits = _logits_of(plain_forward(**loss_options))
            scores = score(logits, labels, return_predictions)
            if next_sentence_label is not None:
                for name, value in score(sentence_logits, next_sentence_label).items():
                    scores[name] = torch.stack([scores[name], value])
            return scores

    forward.__signature__ = forward_signature  # what Trainer and generate() look at
    forward.sums_loss = True
    model.forward = types.MethodType(forward, model)


def use_factorization_order(model: PreTrainedModel) -> None:
    """Let an XLNet take `order` and `targets`, as PermutationLMCollator makes them, for perm_mask and target_mapping.

    These two hold (batch, length, length) and (batch, targets, length) floats, and are made on the model's device just
    before `forward`. `target_mapping` has a row for each target and not for each token, so that the query stream runs
    for the targets alone; rows of -1 in `targets` are rows of zeros in it.
    """

    def make_masks(module: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = dict(kwargs)
        order, targets = kwargs.pop("order", None), kwargs.pop("targets", None)
        if order is not None:
            is_hidden = (order >= 0)[:, None, :] & (order[:, :, None] <= order[:, None, :])
            kwargs["perm_mask"] = is_hidden.to(module.dtype)
            places = torch.arange(order.size(1), device=order.device)
            kwargs["target_mapping"] = (targets[:, :, None] == places).to(module.dtype)
        return args, kwargs

    model.register_forward_pre_hook(make_masks, with_kwargs=True)


def _logits_of(outputs: ModelOutput) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits over the vocabulary, and those about the pair of sentences where the model has a head for it."""
    if "prediction_logits" not in outputs:
        return outputs.logits, None
    sentence_logits = "sop_logits" if "sop_logits" in outputs else "seq_relationship_logits"
    return outputs.prediction_logits, outputs[sentence_logits]


def _prediction_head(model: PreTrainedModel) -> str | None:
    """The name of the first module of the model's vocabulary head; None if the head must run at all positions."""
    config = model.config
    head = PREDICTION_HEADS.get(config.model_type)
    if config.model_type == "modernbert":
        config.reference_compile = False  # its own torch.compile would meet the selection; --torch_compile does not
        if config._attn_implementation == "flash_attention_2":  # the rows in its head are those of no batch
            config.repad_logits_with_grad = True
            head = None
    if head is None or not hasattr(model, head):
        logger.info(
            "model: the vocabulary head of %s runs at all positions, not only at the targets", type(model).__name__
        )
        return None
    return head


@contextlib.contextmanager
def _rows_selected(module: nn.Module, is_selected: torch.Tensor) -> Iterator[None]:
    """Within the block, `module` sees of its first argument (batch, length, ...) the selected rows (selected, ...).

    What prompt tuning put before the first of them is left out.
    """
    length = is_selected.size(1)
    hook = module.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, -length:][is_selected], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def sums_loss(model: nn.Module) -> bool:
    """Whether `use_summed_loss` was applied."""
    return getattr(model.forward, "sums_loss", False)


def score(logits: torch.Tensor, labels: torch.Tensor, return_predictions: bool = False) -> dict[str, torch.Tensor]:
    """Sum the negative log-likelihood and count the correct predictions, without a second tensor as large as `logits`.

    Args:
        logits: (..., vocabulary), any float type; each row's loss is computed in float32.
        labels: (...) int64, -100 where there is no target.

    Returns:
        loss: float64 scalar in nats (float32 where the device has no float64).
        num_correct: int64 scalar, the targets that have the highest logit (the first of equal ones).
        num_targets: int64 scalar.
        predictions, references: only if asked for; int64 (targets,), what is predicted and what is there.
    """
    rows, targets = logits.reshape(-1, logits.size(-1)), labels.reshape(-1)
    float64 = torch.float32 if logits.device.type == "mps" else torch.float64
    loss = torch.zeros((), dtype=float64, device=logits.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=logits.device)
    # A GPU's cache holds no chunk of use, and small ones leave it idle: there the chunks only bound the memory.
    size = ROWS_SCORED_AT_ONCE if logits.device.type == "cpu" else 16 * ROWS_SCORED_AT_ONCE
    predictions = []
    for some_rows, some_targets in zip(rows.split(size), targets.split(size), strict=True):
        some_rows = some_rows.float()
        is_target = some_targets != -100
        loss += cross_entropy(some_rows, some_targets, reduction="none").sum(dtype=float64)
        if return_predictions or logits.device.type != "cpu":
            best = some_rows.argmax(dim=1)
            is_best = is_target & (best == some_targets)
            predictions.append(best)
        else:  # argmax is slow on a CPU: it only decides, where the target's logit is the highest, whether it is first
            at_target = some_rows.gather(1, some_targets.clamp(min=0).unsqueeze(1)).squeeze(1)
            is_best = is_target & (at_target == some_rows.amax(dim=1))
            first_best = torch.from_numpy(some_rows[is_best].detach().numpy().argmax(axis=1))  # NumPy's is 4x as fast
            is_best[is_best.clone()] = first_best == some_targets[is_best]
        num_correct += is_best.sum()
    is_target = targets != -100
    scores = {"loss": loss, "num_correct": num_correct, "num_targets": is_target.sum()}
    if return_predictions:
        scores["predictions"] = torch.cat(predictions)[is_target]
        scores["references"] = targets[is_target]
    return scores


def use_maskless_attention(model: PreTrainedModel) -> None:
    """Let a causal model's SDPA attention do without a mask, for batches that are padded on the right or not at all.

    No token sees what stands right of it, so the mask of such a batch only repeats what `is_causal` says; but it costs
    a synchronization at each step, and under torch.compile (or without `attention_mask`) a (length, length) tensor
    that keeps the flash kernel away. An attention function that transformers has no mask function for gets no mask.
    Does nothing for other models and implementations.
    """
    config = model.config
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if config.model_type in MASKLESS_MODELS and config._attn_implementation == "sdpa" and not has_window:
        AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
        model.set_attn_implementation("sdpa_causal")


def _use_fast_gelu(model: nn.Module) -> None:
    """GPT-2's GELU as one kernel: the same formula (differences of 2e-7), 1.07x on a whole training step of GPT-2."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
