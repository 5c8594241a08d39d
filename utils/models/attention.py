"""Attention without a mask where causality says the same."""

from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward


# Models whose attention is causal and full, through transformers' attention interface: tested to give the same loss
# without a mask, see use_maskless_attention().
MASKLESS_MODELS = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3")


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
