"""The fused GELU computes the same function as GPT-2's."""

import torch
from conftest import make_model
from transformers.activations import NewGELUActivation

from utils.models.fast_gelu import use_fast_gelu


def test_logits_and_config_stay_the_same():
    model, plain = make_model("gpt2", 300), make_model("gpt2", 300)
    use_fast_gelu(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    input_ids = torch.arange(100)[None]
    assert torch.allclose(model(input_ids=input_ids).logits, plain(input_ids=input_ids).logits, atol=1e-5)
    assert model.config.to_dict() == plain.config.to_dict()
