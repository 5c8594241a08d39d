"""Causal attention without a mask."""

from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward


# Models with full causal attention that call transformers' attention interface. Each is tested to give the same loss
# without a mask.
MASKLESS_MODELS = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3")


def use_maskless_attention(model: PreTrainedModel) -> None:
    """Remove the mask from a causal model's SDPA attention, for batches that are padded on the right or not at all.

    In such a batch padding is to the right of all tokens, so causality hides it without a mask. The mask costs a
    synchronization per step, and with torch.compile (or without `attention_mask`) a (length, length) tensor that
    rules out the flash kernel. transformers builds no mask for an attention function without a registered mask
    function, such as the one registered here.

    Does nothing for other models and attention implementations, or for sliding windows.
    """
    config = model.config
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if config.model_type in MASKLESS_MODELS and config._attn_implementation == "sdpa" and not has_window:
        AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
        model.set_attn_implementation("sdpa_causal")
