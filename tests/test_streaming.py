"""Scripts with --streaming: trained, resumed and evaluated as with cached text."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from sharded_text import make_documents, write_shards

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.errors import UsageError
from utils.examples import stream_loader, streaming
from utils.text import document_stream
from utils.text.document_stream import DocumentStream
from utils.tokens import token_stream


@pytest.mark.parametrize(
    ("script", "kind"), [(run_clm, "gpt2"), (run_mlm, "roberta"), (run_plm, "xlnet"), (run_pretraining, "bert")]
)
def test_scripts_stream(script, kind, tmp_path, run, masked_tokenizer):
    """Trained for some epochs of a stream, every script's loss falls; the held-out part is evaluated."""
    folder = write_shards(tmp_path / "text", make_documents(300), 2)
    masked_tokenizer.save_pretrained(tmp_path / "tokenizer")
    sizes = {
        "gpt2": "n_layer=1,n_embd=16,n_head=2,n_positions=64",
        "xlnet": "n_layer=1,d_model=16,n_head=2,d_inner=32",
    }.get(kind, "num_hidden_layers=1,hidden_size=16,intermediate_size=32,num_attention_heads=2")
    results = run(
        tmp_path / "out", "--streaming", "--max_steps", 20, "--model_type", kind, "--config_overrides", sizes,
        "--tokenizer_name", tmp_path / "tokenizer", "--train_file", folder, "--block_size", 32,
        "--per_device_train_batch_size", 8, "--learning_rate", 1e-2, "--validation_split_percentage", 20,
        script=script,
    )  # fmt: skip
    assert results["train_tokens"] > 20 * 8 * 16
    assert results["train_samples"] == 20 * 8
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    assert results["eval_samples"] > 10


def test_streamed_training_is_cached_training_in_order(tmp_path, run, checkpoint):
    """Of one epoch, unshuffled on both sides: the same weights, since the blocks, and the batches, are the same."""
    folder = write_shards(tmp_path / "text", make_documents(100), 2)
    common = [
        "--model_name_or_path", checkpoint("gpt2"), "--train_file", folder, "--do_train", "--block_size", 32,
        "--per_device_train_batch_size", 4, "--max_steps", 10,
    ]  # fmt: skip
    run(tmp_path / "streamed", *common, "--streaming", "--shuffle_buffer_size", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.training.batch_sampler.epoch_order", lambda num_examples, *args: np.arange(num_examples))
        run(tmp_path / "cached", *common)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("streamed", "cached")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_resumed_stream_ends_with_the_same_weights(tmp_path, run, checkpoint):
    """Killed after a checkpoint, with dropout and over the end of an epoch."""
    folder = write_shards(tmp_path / "text", make_documents(60), 3)
    common = [
        "--model_name_or_path", checkpoint("gpt2", resid_pdrop=0.1), "--train_file", folder, "--do_train",
        "--block_size", 32, "--per_device_train_batch_size", 4, "--max_steps", 40, "--streaming",
        "--shuffle_buffer_size", 15, "--save_strategy", "steps", "--save_steps", 7, "--save_total_limit", 20,
    ]  # fmt: skip
    run(tmp_path / "whole", *common)
    assert json.loads((tmp_path / "whole" / "trainer_state.json").read_text())["epoch"] >= 1
    for last in (7, 21):
        out = tmp_path / f"killed-{last}"
        (tmp_path / "whole" / f"checkpoint-{last}").rename(tmp_path / "moved")
        out.mkdir()
        (tmp_path / "moved").rename(out / f"checkpoint-{last}")
        run(out, *common)
        weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out)]
        assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_a_stream_that_breaks_off(tmp_path, run, checkpoint, common_args, monkeypatch, capsys):
    """The training so far is saved, the exit code is 1, and the same command resumes as if nothing had happened."""
    monkeypatch.setattr(streaming, "WINDOW_TOKENS", 500)
    monkeypatch.setattr(stream_loader, "WINDOW_TOKENS", 500)
    monkeypatch.setattr(token_stream, "CHARACTERS_PER_TASK", 1000)
    monkeypatch.setattr(document_stream, "ROWS_PER_READ", 10)
    folder = write_shards(tmp_path / "text", make_documents(600), 3)
    common = [
        "--model_name_or_path", checkpoint("gpt2", resid_pdrop=0.1), "--train_file", folder, "--do_train",
        "--block_size", 128, "--per_device_train_batch_size", 16, "--max_steps", 25, "--streaming",
        "--shuffle_buffer_size", 0, "--save_strategy", "no",
    ]  # fmt: skip
    run(tmp_path / "whole", *common)

    read = DocumentStream.read

    def read_until_the_network_fails(stream, shard, *args, **kwargs):
        if shard == 2:
            raise UsageError("--dataset_name books: the network cannot be reached")
        yield from read(stream, shard, *args, **kwargs)

    monkeypatch.setattr(DocumentStream, "read", read_until_the_network_fails)
    args = ["--output_dir", tmp_path / "out", *common_args, *common]
    with pytest.raises(SystemExit) as ended:
        run_clm.main([str(arg) for arg in args])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    (checkpoint_of_the_end,) = (tmp_path / "out").glob("checkpoint-*")
    step = int(checkpoint_of_the_end.name.removeprefix("checkpoint-"))
    assert 0 < step < 25
    assert any(f"network cannot be reached; step {step} is saved in" in line for line in lines)
    assert any("to resume: " in line for line in lines)

    monkeypatch.setattr(DocumentStream, "read", read)
    run(tmp_path / "out", *common)
    weights = [load_file(tmp_path / out / "model.safetensors") for out in ("whole", "out")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_evaluation_of_a_stream_is_that_of_cached_text(tmp_path, run, checkpoint):
    folder = write_shards(tmp_path / "text", make_documents(100), 2)
    common = ["--model_name_or_path", checkpoint("gpt2"), "--validation_file", folder, "--do_eval", "--block_size", 32]
    streamed, cached = run(tmp_path / "s", *common, "--streaming"), run(tmp_path / "c", *common)
    keys = ("eval_loss", "eval_tokens", "eval_samples", "bits_per_byte")
    assert {key: streamed[key] for key in keys} == {key: cached[key] for key in keys}
    limited = ["--max_eval_samples", 7]
    streamed, cached = run(tmp_path / "s", *common, *limited, "--streaming"), run(tmp_path / "c", *common, *limited)
    assert {key: streamed[key] for key in keys} == {key: cached[key] for key in keys}


def test_refusals(tmp_path, refused, checkpoint):
    folder = write_shards(tmp_path / "text", make_documents(10), 1)
    common = ["--model_name_or_path", checkpoint("gpt2"), "--train_file", folder, "--streaming"]
    assert "set the length of the training with --max_steps" in refused(*common)
    stepped = [*common, "--max_steps", 5]
    assert "--eval_strategy epoch" in refused(*stepped, "--eval_strategy", "epoch")
    assert "--max_train_samples" in refused(*stepped, "--max_train_samples", 5)
    assert "--preprocess_only and --streaming contradict" in refused(*stepped, "--preprocess_only")
    assert "--shuffle_buffer_size -1" in refused(*stepped, "--shuffle_buffer_size", -1)
    assert "goes with --streaming" in refused(*stepped[:4], "--shuffle_buffer_size", 5)
    assert "no such column" in refused(*stepped, "--text_column", "body")
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty" in refused(*stepped, "--train_file", tmp_path / "empty.jsonl", "--do_train")
