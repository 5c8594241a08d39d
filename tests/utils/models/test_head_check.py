"""The loss is computed in the output layer for all common models, and for no model whose loss would change."""

import copy
import logging

import pytest
import torch
from conftest import make_masked_model, make_model, run_python
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from utils.models.losses import use_summed_loss


VOCABULARY = 300
SIZES = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "initializer_range": 0.3,
    "attention_dropout": 0.0, "hidden_dropout": 0.0,
}  # fmt: skip
GPT2_SIZES = {
    "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, "initializer_range": 0.3,
    "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
}  # fmt: skip
# What is special about each: its sizes have other names, it has a bias, or it does something to its logits.
FAMILIES = {
    "gpt2": GPT2_SIZES,
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gptj": GPT2_SIZES | {"rotary_dim": 8},
    "phi": {"resid_pdrop": 0.0},
    "falcon": {"num_kv_heads": 4},
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 8},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.3},
    "mistral": {"head_dim": 8},
}  # fmt: skip


def make_family(model_type: str, **overrides):
    """A random model of two layers, 32 wide, without dropout, whose output layer has a random bias if it has one."""
    torch.manual_seed(0)
    sizes = FAMILIES[model_type]
    config = AutoConfig.for_model(model_type, **((sizes if "n_positions" in sizes else SIZES | sizes) | overrides))
    model = AutoModelForCausalLM.from_config(config)
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


def ragged_batch() -> dict[str, torch.Tensor]:
    """Examples of 17, 9 and 2 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, VOCABULARY, (3, 17), generator=generator)
    mask = (torch.arange(17) < torch.tensor([17, 9, 2])[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, -100)}


def plain_loss(model, batch: dict[str, torch.Tensor], label_smoothing: float = 0.0) -> torch.Tensor:
    logits = type(model).forward(model, batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:].flatten()
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels, reduction="sum", label_smoothing=label_smoothing
    )


def assert_same_training(model, plain, batch=None, label_smoothing: float = 0.0, tolerance: float = 1e-6) -> None:
    """The loss, and each gradient relative to its size, are those of the plain model. Gradients are added up twice."""
    batch = batch or ragged_batch()
    for _ in range(2):
        loss = model(**batch)["loss"]
        expected = plain_loss(plain, batch, label_smoothing)
        for each in (loss, expected):
            each.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    # The gradients of keys' biases are zero but for rounding, hence the part of the largest one.
    rounding = 1e-7 * max(parameter.grad.norm() for parameter in plain.parameters() if parameter.grad is not None)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= tolerance * theirs.grad.norm() + rounding, name


@pytest.fixture
def messages(caplog):
    """What the log says about losses that are not computed in the output layer."""
    caplog.set_level(logging.INFO, "utils")
    return lambda: [record.message for record in caplog.records if "all logits at once" in record.message]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_loss_and_gradients_are_the_plain_models(model_type, tied, messages):
    model = make_family(model_type, tie_word_embeddings=tied)
    plain = copy.deepcopy(model).train()
    use_summed_loss(model.train(), shift=True)
    assert model.training and not messages()
    assert_same_training(model, plain)
    with torch.no_grad():
        scores = model.eval()(**ragged_batch(), return_predictions=True)
        expected = plain_loss(plain.eval(), ragged_batch())
    assert scores["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_logits_are_made():
    """The output layer returns a zero per row, in training and in evaluation."""
    model = make_family("gpt2")
    use_summed_loss(model, shift=True)
    shapes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model.train()(**ragged_batch())
    with torch.no_grad():
        model.eval()(**ragged_batch())
    assert shapes == [(3, 17, 1), (3, 17, 1)]


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "granite"])
def test_label_smoothing_and_gradient_checkpointing(model_type, messages):
    model = make_family(model_type)
    plain = copy.deepcopy(model).train()
    use_summed_loss(model.train(), shift=True, label_smoothing=0.1)
    model.gradient_checkpointing_enable()
    assert not messages()
    assert_same_training(model, plain, label_smoothing=0.1)


def test_frozen_head_below_trained_layers(messages):
    """As with adapters: the gradient passes through the head, which gets none."""
    model = make_family("llama", tie_word_embeddings=False)
    model.lm_head.requires_grad_(False)
    plain = copy.deepcopy(model).train()
    use_summed_loss(model.train(), shift=True)
    assert not messages()
    assert_same_training(model, plain)


def test_bfloat16_autocast(messages):
    """As close to the float32 loss as the plain model under autocast."""
    model = make_family("llama")
    plain, exact = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    use_summed_loss(model.train(), shift=True)
    expected = plain_loss(exact, ragged_batch())
    expected.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**ragged_batch())["loss"]
        plain_value = plain_loss(plain, ragged_batch())
    loss.backward()
    plain_value.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain_value.item(), rel=1e-5)
    for ours, theirs, exactly in zip(model.parameters(), plain.parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        assert (ours.grad - exactly.grad).norm() <= 1.1 * (theirs.grad - exactly.grad).norm() + 1e-3


def test_bfloat16_weights(messages):
    model = make_family("gemma2").to(torch.bfloat16)
    plain = copy.deepcopy(model).train()
    use_summed_loss(model.train(), shift=True)
    assert not messages()
    assert model(**ragged_batch())["loss"].item() == pytest.approx(plain_loss(plain, ragged_batch()).item(), rel=1e-2)


class UnknownStep(LlamaForCausalLM):
    """Does something to its logits that is neither a scale nor a cap."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = self.step(outputs.logits)
        return outputs


UNKNOWN_STEPS = {
    "curved": lambda self, logits: logits + 0.01 * logits**2,
    "another parameter": lambda self, logits: logits + self.extra,
    "masked": lambda self, logits: logits.masked_fill(torch.arange(logits.size(-1)) == 7, -30.0),
    "shortened": lambda self, logits: logits[..., :-4],
    "one token alone": lambda self, logits: logits * torch.linspace(0.5, 1, logits.size(1))[:, None],
    "no logits of its own": lambda self, logits: logits.roll(1, dims=0),
}


@pytest.mark.parametrize("step", UNKNOWN_STEPS)
def test_unknown_step_is_left_to_the_model(step, messages, monkeypatch):
    """One log line says so, and the loss is that of the logits."""
    monkeypatch.setattr(UnknownStep, "step", UNKNOWN_STEPS[step], raising=False)
    torch.manual_seed(0)
    model = UnknownStep(make_family("llama").config)
    model.extra = torch.nn.Parameter(torch.zeros(VOCABULARY))  # zero, so that only its gradient shows
    plain = copy.deepcopy(model).train()
    use_summed_loss(model.train(), shift=True)
    assert len(messages()) == 1 and "UnknownStep" in messages()[0]
    batch = ragged_batch()
    batch["input_ids"] %= VOCABULARY - 4
    batch["labels"] = torch.where(batch["labels"] == -100, -100, batch["input_ids"])
    assert_same_training(model, plain, batch)


def test_bias_beside_the_output_layer(messages):
    """ESM adds the bias of its head itself; it starts at zero, so that only its gradient shows."""
    use_summed_loss(make_masked_model("esm", 40), shift=False)
    assert len(messages()) == 1 and "parameters" in messages()[0]


def test_the_comparison_changes_nothing():
    model = make_model("gpt2", VOCABULARY, attn_pdrop=0.5).train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    use_summed_loss(model, shift=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


MEMORY_OF_A_STEP = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, GPT2Config
from utils.models.losses import use_summed_loss

sizes = {"n_layer": 1, "n_embd": 32, "n_head": 1, "vocab_size": 50257, "n_positions": 256}
no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
model = AutoModelForCausalLM.from_config(GPT2Config(**sizes, **no_dropout))
use_summed_loss(model.train(), shift=True)
ids = torch.randint(50257, (int(sys.argv[1]), 256))
model(input_ids=ids, labels=ids)["loss"].backward()
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""


def test_memory_of_a_step_hardly_grows_with_the_batch():
    """All logits of the larger batch would be 3,300 MB, and 400 MB of the smaller one."""
    small, large = (int(run_python("-c", MEMORY_OF_A_STEP, rows).stdout) / 1000 for rows in (8, 64))
    assert large - small < 100
