"""The summed loss is the plain model's loss; attention without a mask is attention with one."""

import copy

import pytest
import torch
from conftest import make_model
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from utils.models.attention import MASKLESS_MODELS, use_maskless_attention
from utils.models.loading import _use_fast_gelu
from utils.models.losses import score, use_summed_loss


def right_padded_batch(vocab_size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, vocab_size, (3, 17), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 9:] = 0
    mask[2, 1:] = 0
    labels = input_ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def reference_nll(model, batch) -> torch.Tensor:
    """Sum of -log p(next token), in float64, from the plain logits."""
    logits = type(model).forward(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_probabilities = logits.double().log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(logits)):
        for position in range(1, int(batch["attention_mask"][row].sum())):
            total = total - log_probabilities[row, position - 1, batch["input_ids"][row, position]]
    return total


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_summed_loss_and_gradients(kind):
    model, plain = make_model(kind, 300), make_model(kind, 300)
    batch = right_padded_batch(300)
    use_summed_loss(model, shift=True)
    expected = reference_nll(plain, batch)
    expected.backward()
    model.train()
    loss = model(**batch)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=0, atol=1e-5 * theirs.grad.abs().max().item() + 1e-7, msg=name
        )  # float32 against a float64 loss

    model.eval()
    with torch.no_grad():
        scores = model(**batch, return_predictions=True)
    logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    is_target = batch["labels"][:, 1:] != -100
    predictions = logits.argmax(-1)[:, :-1][is_target]
    assert scores["loss"].dtype == torch.float64
    assert scores["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert scores["num_targets"] == is_target.sum() == len(scores["references"])
    assert torch.equal(scores["predictions"], predictions)
    assert torch.equal(scores["references"], batch["labels"][:, 1:][is_target])
    assert scores["num_correct"] == (predictions == scores["references"]).sum()


def test_without_labels_nothing_changes():
    model, plain = make_model("llama", 300), make_model("llama", 300)
    use_summed_loss(model, shift=True)
    inputs = {"input_ids": torch.arange(10)[None]}
    ours, theirs = model(**inputs), plain(**inputs)
    assert torch.equal(ours.logits, theirs.logits)
    assert ours.past_key_values is not None
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))


def test_no_cache_is_built_in_training(monkeypatch):
    model = make_model("gpt2", 300)
    seen = []
    monkeypatch.setattr(
        type(model.transformer), "forward", lambda self, *args, **kwargs: seen.append(kwargs["use_cache"]) or 1 / 0
    )
    use_summed_loss(model, shift=True)
    with pytest.raises(ZeroDivisionError):
        model.train()(**right_padded_batch(300))
    assert seen == [False]


def test_label_smoothing_is_that_of_cross_entropy():
    model, plain = make_model("gpt2", 300), make_model("gpt2", 300)
    use_summed_loss(model, shift=True, label_smoothing=0.1)
    batch = right_padded_batch(300)
    logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    expected = cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum", label_smoothing=0.1
    )
    assert model.train()(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_survives_a_copy_of_the_model():
    model = make_model("gpt2", 300)
    use_summed_loss(model, shift=True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.transformer.wte.weight.zero_()
    batch = right_padded_batch(300)
    assert model.train()(**batch)["loss"] != twin.train()(**batch)["loss"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("return_predictions", [True, False])
def test_score_counts_the_first_of_equal_logits(dtype, return_predictions):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (5, 40, 30), generator=generator).to(dtype)  # many ties
    labels = torch.randint(-1, 30, (5, 40), generator=generator)
    labels[labels == -1] = -100
    scores = score(logits, labels, return_predictions)
    is_target = labels != -100
    nll = -logits.double().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    assert scores["loss"].item() == pytest.approx(nll[is_target].sum().item(), rel=1e-6)
    first_highest = torch.tensor([[row.tolist().index(row.max().item()) for row in rows] for rows in logits])
    assert scores["num_correct"] == (first_highest == labels)[is_target].sum()
    assert scores["num_targets"] == is_target.sum()


@pytest.mark.parametrize("model_type", MASKLESS_MODELS)
def test_maskless_attention_is_causal_attention(model_type):
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64, "initializer_range": 0.3}
    names = {"gpt2": {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head"}}
    small = {names.get(model_type, {}).get(key, key): value for key, value in small.items()}
    small |= {"head_dim": 8, "ffn_dim": 32, "word_embed_proj_dim": 16, "sliding_window": None, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, **small)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    use_summed_loss(model, shift=True)
    batch = right_padded_batch(300)
    with torch.no_grad():
        expected = model(**batch)["loss"].item()
        model.set_attn_implementation("sdpa")
        use_maskless_attention(model)
        assert model.config._attn_implementation == "sdpa_causal"
        assert model(**batch)["loss"].item() == pytest.approx(expected, rel=1e-6)
        without_mask = {key: value for key, value in batch.items() if key != "attention_mask"}
        assert model(**without_mask)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_a_sliding_window_keeps_its_mask():
    config = AutoConfig.for_model(
        "mistral", num_hidden_layers=1, hidden_size=16, num_attention_heads=2, sliding_window=4
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    use_maskless_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_maskless_attention_is_not_saved(tmp_path):
    model = make_model("gpt2", 300)
    use_maskless_attention(model)
    model.save_pretrained(tmp_path)
    assert "sdpa_causal" not in (tmp_path / "config.json").read_text()


def test_fast_gelu_is_the_same_function():
    model, plain = make_model("gpt2", 300), make_model("gpt2", 300)
    _use_fast_gelu(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    input_ids = torch.arange(100)[None]
    assert torch.allclose(model(input_ids=input_ids).logits, plain(input_ids=input_ids).logits, atol=1e-5)
    assert model.config.to_dict() == plain.config.to_dict()
