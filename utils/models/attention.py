"""Causal attention without a mask."""

import logging

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward


logger = logging.getLogger(__name__)

# Models with full causal attention that call transformers' attention interface. Each is tested to give the same loss
# without a mask.
MASKLESS_MODELS = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3")


def use_maskless_attention(model: PreTrainedModel) -> None:
    """Remove the mask from a causal model's SDPA attention, for batches that are padded on the right or not at all.

    In such a batch padding is to the right of all tokens, so causality hides it without a mask. The mask costs a
    synchronization per step, and with torch.compile (or without `attention_mask`) a (length, length) tensor that
    rules out the flash kernel. transformers builds no mask for an attention function without a registered mask
    function, such as the one registered here.

    Does nothing for other models and attention implementations, or for sliding windows; except that a model whose SDPA
    attention is not causal gets eager attention.
    """
    config = model.config
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if config.model_type in MASKLESS_MODELS and config._attn_implementation == "sdpa" and not has_window:
        AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
        model.set_attn_implementation("sdpa_causal")
    elif config._attn_implementation == "sdpa" and sees_the_future(model):
        model.set_attn_implementation("eager")
        logger.warning("attention: eager, since with sdpa this %s sees the tokens it predicts", config.model_type)


@torch.no_grad()
def sees_the_future(model: PreTrainedModel) -> bool:
    """Whether the logits of a token depend on those after it, which makes every loss meaningless.

    So it is with Doge and SDPA in transformers 4.57, whose mask of its own takes the place of the causal one.
    """
    was_training = model.training
    tokens = torch.arange(2, 8, device=model.device).unsqueeze(0)
    changed = tokens.clone()
    changed[0, -1] = 1
    logits, others = (model.eval()(input_ids=ids).logits[0, :-1].float() for ids in (tokens, changed))
    model.train(was_training)
    return bool((logits - others).abs().max() > 1e-2 * logits.std())
