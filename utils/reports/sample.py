"""Text that a trained model writes itself."""

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sample_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_tokens: int, prompt_ids: np.ndarray
) -> str:
    """The first 8 of `prompt_ids` and the model's continuation of them, sampled from the 40 likeliest tokens.

    Args:
        num_tokens: the most new tokens.
        prompt_ids: integers of shape (length,).
    """
    model.eval()
    input_ids = torch.tensor(prompt_ids[:8].astype(np.int64), device=model.device).unsqueeze(0)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    output = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=True, top_k=40, pad_token_id=pad_token_id)
    return tokenizer.decode(output[0], skip_special_tokens=True)
