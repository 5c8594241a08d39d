"""Causal attention without a mask gives the same loss as with one."""

import pytest
import torch
from conftest import make_model
from transformers import AutoConfig, AutoModelForCausalLM

from utils.models.attention import MASKLESS_MODELS, use_maskless_attention
from utils.models.losses import use_summed_loss


SIZES = {
    "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "ffn_dim": 32, "word_embed_proj_dim": 16, "vocab_size": 300,
    "max_position_embeddings": 64, "initializer_range": 0.3, "sliding_window": None, "pad_token_id": None,
}  # fmt: skip
GPT2_NAMES = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head"}


@pytest.mark.parametrize("model_type", MASKLESS_MODELS)
def test_loss_is_the_same_without_a_mask(model_type):
    torch.manual_seed(0)
    names = GPT2_NAMES if model_type == "gpt2" else {}
    config = AutoConfig.for_model(model_type, **{names.get(key, key): value for key, value in SIZES.items()})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    use_summed_loss(model, shift=True)
    input_ids = torch.randint(0, 300, (3, 17))
    mask = (torch.arange(17) < torch.tensor([17, 9, 1])[:, None]).long()
    labels = input_ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        expected = model(input_ids=input_ids, attention_mask=mask, labels=labels)["loss"].item()
        model.set_attn_implementation("sdpa")
        use_maskless_attention(model)
        assert model.config._attn_implementation == "sdpa_causal"
        loss = model(input_ids=input_ids, attention_mask=mask, labels=labels)["loss"].item()
        assert loss == pytest.approx(expected, rel=1e-6)
        loss = model(input_ids=input_ids, labels=labels)["loss"].item()
        assert loss == pytest.approx(expected, rel=1e-6)


def test_sliding_window_keeps_its_mask():
    config = AutoConfig.for_model(
        "mistral", num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, sliding_window=4
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    use_maskless_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_saved_config_does_not_name_it(tmp_path):
    model = make_model("gpt2", 300)
    use_maskless_attention(model)
    model.save_pretrained(tmp_path)
    assert "sdpa_causal" not in (tmp_path / "config.json").read_text()


def test_model_that_would_see_the_future_gets_eager_attention():
    """Doge has a mask of its own, which replaces the causal one in transformers' SDPA attention."""
    sizes = {key: value for key, value in SIZES.items() if key not in ("sliding_window", "pad_token_id", "head_dim")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("doge", **sizes), attn_implementation="sdpa").eval()
    use_summed_loss(model, shift=True)
    use_maskless_attention(model)
    input_ids = torch.randint(0, 300, (2, 17))
    changed = input_ids.clone()
    changed[:, 9] += 1
    changed %= 300
    with torch.no_grad():
        logits, others = model(input_ids=input_ids).logits, model(input_ids=changed).logits
    torch.testing.assert_close(logits[:, :9], others[:, :9])
    assert not torch.allclose(logits[:, 9:], others[:, 9:])


@pytest.mark.parametrize("model_type", ["apertus", "gemma2", "bloom"])
def test_causal_models_keep_sdpa(model_type):
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, vocab_size=30))
    before = model.config._attn_implementation
    use_maskless_attention(model)
    assert model.config._attn_implementation == before
