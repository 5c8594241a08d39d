"""run_clm.py from its flags to its files: exact losses, gradients and counts at any batch size."""

import json
import math

import pytest
import torch
from conftest import make_lines
from references import causal_reference
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import run_clm


SCRATCH = [
    "--model_type", "gpt2", "--train_tokenizer", "bpe", "--vocab_size", "300",
    "--config_overrides", "n_layer=1,n_embd=16,n_head=2,n_positions=64",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_evaluation_is_exact_at_any_batch_size(kind, checkpoint, validation_file, run, tmp_path):
    """With a short last block and a short last batch."""
    folder = checkpoint(kind)
    expected = causal_reference(folder, validation_file, block_size=16)
    assert expected["eval_tokens"] % 15 != 0  # the last block is short
    for batch_size, *padding in ((1,), (7,), (32,), (1, "--pad_to_max_length")):
        results = run(
            tmp_path / f"out{batch_size}", "--model_name_or_path", folder, "--validation_file", validation_file,
            "--do_eval", "--block_size", 16, "--per_device_eval_batch_size", batch_size, *padding,
        )  # fmt: skip
        assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
        assert results["perplexity"] == pytest.approx(math.exp(results["eval_loss"]), rel=1e-12)
        assert results["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-5)
        for key in ("eval_accuracy", "eval_tokens", "eval_bytes"):
            assert results[key] == expected[key]


def test_max_eval_samples(checkpoint, validation_file, run, tmp_path):
    folder = checkpoint("gpt2")
    results = run(
        tmp_path / "out", "--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval",
        "--block_size", 16, "--max_eval_samples", 5,
    )  # fmt: skip
    assert results["eval_samples"] == 5
    expected = causal_reference(folder, validation_file, 16, max_blocks=5)
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert results["eval_tokens"] == expected["eval_tokens"] == 75


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize(
    "text", ["ascii words only here", "café à la crème, señor Ångström", "日本語のテキストと中文"]
)
def test_bits_per_byte(kind, text, run, tmp_path):
    """One block holds all the text; the bytes of all tokens but the first are predicted."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join([f"{text} {i} {text[::-1]}" for i in range(8)]))
    results = run(
        tmp_path / "out", "--model_type", "gpt2", "--train_tokenizer", kind, "--vocab_size", 320, "--train_file", path,
        "--validation_file", path, "--config_overrides", "n_layer=1,n_embd=16,n_head=2", "--block_size", 25,
        "--document_by", "file", "--max_steps", 1, "--do_train", "--do_eval", "--max_eval_samples", 1,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    encoding = tokenizer(path.read_text(), return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"][:25], encoding["offset_mapping"][:25]
    assert len(ids) == 25
    if kind == "bpe":
        num_bytes = sum(map(len, tokenizer.convert_ids_to_tokens(ids[1:])))
    else:
        first, last = offsets[0][1], offsets[-1][1]
        num_bytes = len(path.read_text()[first:last].encode())
    assert results["eval_bytes"] == num_bytes
    nll = results["eval_loss"] * results["eval_tokens"]
    assert results["bits_per_byte"] == pytest.approx(nll / math.log(2) / num_bytes, rel=1e-9)


def first_gradients(trainer_flags, run, tmp_path, monkeypatch, name) -> dict[str, torch.Tensor]:
    """The gradients of the first optimizer step of a run."""
    gradients = {}

    class Stop(Exception):
        pass

    def step(optimizer, *args, **kwargs):
        model = monkeypatch.trainer.model
        gradients.update({key: value.grad.clone() for key, value in model.named_parameters()})
        raise Stop

    class Recorder(run_clm.LMTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            monkeypatch.trainer = self

    with monkeypatch.context() as patch:
        patch.setattr(run_clm, "LMTrainer", Recorder)
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(Stop):
            run(tmp_path / name, *trainer_flags)
    return gradients


def test_accumulation_does_not_change_the_gradient(checkpoint, tmp_path, run, monkeypatch):
    """8 blocks of unequal length (the last is short) as 8 x 1, 1 x 8 and 2 x 4."""
    folder = checkpoint("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tmp_path / "text.txt"
    ids = tokenizer("\n".join(make_lines(60)))["input_ids"][: 7 * 24 + 5]
    text.write_text(tokenizer.decode(ids))
    flags = ["--model_name_or_path", folder, "--train_file", text, "--do_train", "--block_size", 24]
    flags += ["--document_by", "file", "--max_grad_norm", 0, "--max_steps", 1]
    by_layout = {}
    for batch, accumulation in ((8, 1), (1, 8), (2, 4)):
        layout = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
        name = f"out{batch}"
        by_layout[name] = first_gradients([*flags, *layout], run, tmp_path, monkeypatch, name)

    model = AutoModelForCausalLM.from_pretrained(folder)
    blocks = [torch.tensor([ids[start : start + 24]]) for start in range(0, len(ids), 24)]
    assert [block.size(1) for block in blocks] == [24] * 7 + [5]
    nll = sum(cross_entropy(model(block).logits[0, :-1].double(), block[0, 1:], reduction="sum") for block in blocks)
    (nll / sum(block.size(1) - 1 for block in blocks)).backward()
    expected = {key: value.grad for key, value in model.named_parameters()}
    for gradients in by_layout.values():
        assert gradients.keys() == expected.keys()
        for key, value in gradients.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("block_size", [7, 32, 64])
def test_an_epoch_trains_on_every_token_once(block_size, train_file, run, tmp_path, monkeypatch):
    seen = []

    class Recorder(run_clm.CausalLMCollator):
        def __call__(self, examples):
            seen.extend(example["input_ids"].tolist() for example in examples)
            return super().__call__(examples)

    monkeypatch.setattr(run_clm, "CausalLMCollator", Recorder)
    results = run(
        tmp_path / "out", *SCRATCH, "--train_file", train_file, "--do_train", "--block_size", block_size,
        "--num_train_epochs", 1, "--append_eos",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    lines = train_file.read_text().splitlines(keepends=True)
    ids = [token for line in lines for token in [*tokenizer(line)["input_ids"], tokenizer.eos_token_id]]
    expected = [ids[start : start + block_size] for start in range(0, len(ids), block_size)]
    assert sorted(seen) == sorted(expected)
    assert results["train_tokens"] == len(ids)
    assert results["train_samples"] == len(expected)


def test_train_loss_is_the_mean_over_all_targets(checkpoint, train_file, run, tmp_path):
    """With a learning rate of 0, an epoch's loss is that of the checkpoint, for any batches."""
    folder = checkpoint("gpt2")
    expected = causal_reference(folder, train_file, 20)
    for batch_size in (3, 8):
        results = run(
            tmp_path / f"out{batch_size}", "--model_name_or_path", folder, "--train_file", train_file, "--do_train",
            "--block_size", 20, "--per_device_train_batch_size", batch_size, "--learning_rate", 0,
            "--gradient_accumulation_steps", 2, "--num_train_epochs", 1, "--logging_steps", 1,
        )  # fmt: skip
        assert results["train_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
        state = json.loads((tmp_path / f"out{batch_size}" / "trainer_state.json").read_text())
        losses = [log["loss"] for log in state["log_history"] if "loss" in log]
        assert len(losses) >= 2
        assert min(losses) < expected["eval_loss"] < max(losses)


def weights(folder) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_best_model_is_loaded_at_the_end(train_file, validation_file, run, tmp_path):
    results = run(
        tmp_path / "out", *SCRATCH, "--train_file", train_file, "--validation_file", validation_file,
        "--block_size", 16, "--num_train_epochs", 4, "--learning_rate", "0.3", "--eval_strategy", "epoch",
        "--save_strategy", "epoch", "--load_best_model_at_end", "--save_total_limit", 1,
    )  # fmt: skip
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    losses = [log["eval_loss"] for log in state["log_history"] if "eval_loss" in log]
    assert results["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert state["best_metric"] == min(losses)


def test_special_tokens_of_the_tokenizer(checkpoint, masked_tokenizer, validation_file, run, tmp_path, caplog):
    """Added to each document, as the log says, unless they are left out. The cache tells the two apart."""
    masked_tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = [
        "--model_name_or_path", checkpoint("llama"), "--tokenizer_name", tmp_path / "tokenizer", "--validation_file",
        validation_file, "--do_eval", "--block_size", 16,
    ]  # fmt: skip
    lines = validation_file.read_text().splitlines(keepends=True)
    line_of_log = "tokenizer: adds <s> </s> to each document (or line, if documents are lines)"
    for added in (True, False, True):
        caplog.clear()
        with caplog.at_level("INFO", "utils"):
            results = run(tmp_path / "out", *flags, *([] if added else ["--add_special_tokens", "false"]))
        ids = [token for line in lines for token in masked_tokenizer(line, add_special_tokens=added)["input_ids"]]
        assert results["eval_tokens"] == sum(i % 16 > 0 for i in range(len(ids)))
        assert caplog.text.count(line_of_log) == added
    caplog.clear()
    with caplog.at_level("INFO", "utils"):
        run(tmp_path / "out", *flags[:2], *flags[4:])  # with a tokenizer that adds none
    assert "tokenizer: adds" not in caplog.text


def test_second_run_tokenizes_nothing(train_file, run, tmp_path):
    built = set()
    flags = [*SCRATCH, "--train_file", train_file, "--preprocess_only"]

    def num_built(*more) -> int:
        """How many parts this run adds to the cache or replaces: training text and held-out text have one each."""
        before = set(built)
        run(tmp_path / "out", *flags, *more)
        parts = (tmp_path / "cache" / "language_modeling").glob("*/part.json")
        built.update((path, path.stat().st_mtime_ns) for path in parts)
        return len(built - before)

    assert num_built("--block_size", 16) == 2
    assert num_built("--block_size", 16) == 0
    assert num_built("--block_size", 20) == 0
    assert num_built("--block_size", 16, "--append_eos") == 2
    assert num_built("--block_size", 16, "--document_by", "blank_line", "--do_train") == 1
    assert num_built("--block_size", 16, "--vocab_size", 290) == 2
    with train_file.open("a") as file:
        file.write("one more line\n")
    assert num_built("--block_size", 16) == 2
    assert num_built("--block_size", 16, "--overwrite_cache") == 2


def test_embeddings_grow_with_the_tokenizer(checkpoint, train_file, run, tmp_path):
    folder = checkpoint("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new1>", "<new2>"])
    tokenizer.save_pretrained(tmp_path / "larger")
    before = weights(folder)["transformer.wte.weight"]
    run(
        tmp_path / "out", "--model_name_or_path", folder, "--tokenizer_name", tmp_path / "larger", "--train_file",
        train_file, "--block_size", 16, "--max_steps", 1, "--learning_rate", 0,
    )  # fmt: skip
    after = weights(tmp_path / "out")["transformer.wte.weight"]
    assert len(after) == len(tokenizer) == len(before) + 2
    assert torch.equal(after[:-2], before)


def test_from_scratch_vocabulary_and_special_tokens_follow_the_tokenizer(train_file, run, tmp_path):
    run(
        tmp_path / "out", "--model_type", "llama", "--train_tokenizer", "unigram", "--vocab_size", 120, "--train_file",
        train_file, "--config_overrides", "hidden_size=16,intermediate_size=16,num_hidden_layers=1,"
        "num_attention_heads=2,num_key_value_heads=2,eos_token_id=7", "--block_size", 16, "--max_steps", 1,
    )  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert config["vocab_size"] == len(tokenizer)
    assert config["bos_token_id"] == tokenizer.bos_token_id
    assert config["eos_token_id"] == 7


METRIC = """
import datasets
import evaluate

class MyMetric(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        hits = sum(prediction == reference for prediction, reference in zip(predictions, references))
        return {"hits": hits, "count": len(references), "sum": sum(references)}
"""


def test_a_local_metric_sees_the_targets(checkpoint, validation_file, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    (tmp_path / "my_metric").mkdir()
    (tmp_path / "my_metric" / "my_metric.py").write_text(METRIC)
    folder = checkpoint("gpt2")
    results = run(
        tmp_path / "out", "--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval",
        "--block_size", 16, "--per_device_eval_batch_size", 7, "--metric", tmp_path / "my_metric",
    )  # fmt: skip
    expected = causal_reference(folder, validation_file, 16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [token for line in validation_file.read_text().splitlines(True) for token in tokenizer(line)["input_ids"]]
    assert results["eval_my_metric_count"] == expected["eval_tokens"]
    assert results["eval_my_metric_hits"] == round(expected["eval_accuracy"] * expected["eval_tokens"])
    assert results["eval_my_metric_sum"] == sum(token for i, token in enumerate(ids) if i % 16)


def test_bf16_trains_and_evaluates_in_float32(checkpoint, train_file, run, tmp_path):
    """Mixed precision is for training only; the reported loss is that of the saved weights in float32."""
    results = run(
        tmp_path / "out", "--model_name_or_path", checkpoint("gpt2"), "--train_file", train_file, "--validation_file",
        train_file, "--block_size", 16, "--max_steps", 3, "--bf16", "true", "--use_cpu",
    )  # fmt: skip
    expected = causal_reference(tmp_path / "out", train_file, 16)
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)


def test_gradient_checkpointing_changes_nothing(checkpoint, train_file, run, tmp_path):
    flags = ["--model_name_or_path", checkpoint("llama"), "--train_file", train_file, "--block_size", 16]
    flags += ["--max_steps", 3, "--learning_rate", "1e-2"]
    plain = run(tmp_path / "plain", *flags)
    saving = run(tmp_path / "saving", *flags, "--gradient_checkpointing")
    assert saving["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-6)


def test_float16_weights_are_evaluated_but_not_trained(checkpoint, validation_file, run, refused, tmp_path):
    flags = ["--model_name_or_path", checkpoint("gpt2"), "--validation_file", validation_file, "--block_size", 16]
    assert "--fp16" in refused(*flags, "--train_file", validation_file, "--dtype", "float16")
    single = run(tmp_path / "single", *flags, "--do_eval")
    half = run(tmp_path / "half", *flags, "--do_eval", "--dtype", "bfloat16")
    assert half["eval_loss"] == pytest.approx(single["eval_loss"], rel=0.01)
    assert half["eval_loss"] != single["eval_loss"]


def test_evaluation_alone_changes_no_file(checkpoint, validation_file, run, tmp_path):
    """With the checkpoint's own folder as the output folder, only the results and the flags are added."""
    folder = checkpoint("gpt2")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(folder, "--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval", "--block_size", 16)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"eval_results.json", "all_results.json", "eval_args.yaml"}


@pytest.mark.parametrize("num_tokens", [3, 20])
def test_a_sample_continues_the_corpus(num_tokens, checkpoint, validation_file, run, tmp_path, capsys, monkeypatch):
    """Its prompt is the first 8 tokens of the text, and the model adds exactly as many as were asked for."""
    samples = []
    generate = GPT2LMHeadModel.generate
    monkeypatch.setattr(
        GPT2LMHeadModel, "generate", lambda *args, **kwargs: samples.append(generate(*args, **kwargs)) or samples[-1]
    )
    folder = checkpoint("gpt2", eos_token_id=None)  # otherwise a sample may end early
    run(
        tmp_path / "out", "--model_name_or_path", folder, "--validation_file", validation_file, "--block_size", 16,
        "--do_eval", "--sample_tokens", num_tokens,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ((sample,),) = samples
    assert sample[:8].tolist() == tokenizer(validation_file.read_text())["input_ids"][:8]
    assert len(sample) == 8 + num_tokens
    assert tokenizer.decode(sample, skip_special_tokens=True) in capsys.readouterr().out
