"""Resuming a run: what must be as before, what may change, and a run that is complete."""

import json
import shutil

import pytest
import yaml
from datasets import Dataset
from scripts import FROM_SCRATCH, SCRIPTS, save_checkpoints, write_documents
from test_survival import weights


@pytest.fixture
def flags():
    """Four updates of a small model from scratch, with a checkpoint after the second and the last."""
    return [
        "--train_tokenizer", "bpe", "--vocab_size", 300, "--model_type", "gpt2", "--config_overrides",
        "n_embd=16,n_layer=1,n_head=2,n_positions=64", "--block_size", 16, "--max_steps", 4, "--save_steps", 2,
        "--save_strategy", "steps", "--per_device_train_batch_size", 4, "--learning_rate", "1e-3", "--document_by",
        "blank_line", "--max_train_samples", 20, "--do_train",
    ]  # fmt: skip


@pytest.fixture
def stopped(flags, run, train_file, tmp_path):
    """The folder of a run of four updates as it was after the second one."""
    run(tmp_path / "out", *flags, "--train_file", train_file)
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    for name in ("README.md", "train_results.json", "all_results.json", "model.safetensors"):
        (tmp_path / "out" / name).unlink()
    return tmp_path / "out"


def with_flag(flags: list, name: str, *values) -> list:
    """The flags with another value of one of them, or with one more."""
    if name not in flags:
        return [*flags, name, *values]
    place = flags.index(name)
    return [*flags[:place], name, *values, *flags[place + 2 :]]


@pytest.mark.parametrize(
    ("flag", "value", "parts"),
    [
        ("--learning_rate", "1e-6", ["--learning_rate 0.001", "--learning_rate 1e-06"]),
        ("--lr_scheduler_type", "constant", ["--lr_scheduler_type linear", "--lr_scheduler_type constant"]),
        ("--warmup_steps", 1, ["--warmup_steps 0", "--warmup_steps 1"]),
        ("--block_size", 8, ["--block_size 16", "--block_size 8"]),
        ("--weight_decay", 0.1, ["--weight_decay 0.0", "--weight_decay 0.1"]),
        ("--optim", "adafactor", ["--optim adamw", "--optim adafactor"]),
        ("--label_smoothing_factor", 0.1, ["--label_smoothing_factor"]),
        ("--document_by", "line", ["--document_by blank_line", "--document_by line"]),
        ("--neftune_noise_alpha", 5, ["no --neftune_noise_alpha", "--neftune_noise_alpha 5.0"]),
        ("--append_eos", True, ["--append_eos False", "--append_eos True"]),
        ("--config_overrides", "n_embd=32,n_layer=1,n_head=2,n_positions=64", ["n_embd=16", "n_embd=32"]),
        ("--train_tokenizer", "unigram", ["--train_tokenizer bpe", "--train_tokenizer unigram"]),
    ],
)
def test_what_decides_the_weights_must_not_change(flag, value, parts, stopped, flags, refused, train_file):
    """The flag is named with both values, the way out too, and nothing is touched."""
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    message = refused(*with_flag(flags, flag, value), "--train_file", train_file, output_dir=stopped)
    for part in [*parts, "checkpoint-2", "--overwrite_output_dir", "--model_name_or_path"]:
        assert part in message
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_another_text_with_as_many_examples(stopped, flags, refused, train_file, tmp_path):
    text = train_file.read_text()
    other = tmp_path / "other.txt"
    other.write_text(text.replace("the", "eht"))
    message = refused(*flags, "--train_file", other, output_dir=stopped)
    assert "checkpoint-2 was trained on another text" in message and "--model_name_or_path" in message
    assert yaml.safe_load((stopped / "run_args.yaml").read_text())["train_file"] == [str(train_file)]


def test_the_same_text_elsewhere_continues(stopped, flags, run, train_file, tmp_path, caplog):
    """The tokens are compared, not the paths, and what else may change is said."""
    run(tmp_path / "twin", *flags, "--train_file", train_file)
    moved = tmp_path / "moved.txt"
    shutil.copy(train_file, moved)
    caplog.clear()
    run(stopped, *with_flag(flags, "--save_steps", 1), "--train_file", moved, "--gradient_checkpointing")
    said = next(record.getMessage() for record in caplog.records if "with other flags" in record.getMessage())
    assert "save_steps 2.0 -> 1.0" in said and "gradient_checkpointing" in said and "moved.txt" in said
    assert "learning_rate" not in said and "output_dir" not in said
    ours, twin = weights(stopped), weights(tmp_path / "twin")
    assert all((ours[name] == twin[name]).all() for name in twin)


def test_more_steps_follow_the_longer_schedule(flags, run, train_file, tmp_path):
    """A complete run goes on at the rates of a run that was planned as long."""

    def rates(folder):
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return {log["step"]: log["learning_rate"] for log in history if "learning_rate" in log}

    flags = [*flags, "--train_file", train_file, "--logging_steps", 1]
    run(tmp_path / "out", *flags)
    run(tmp_path / "out", *with_flag(flags, "--max_steps", 7))
    run(tmp_path / "planned", *with_flag(flags, "--max_steps", 7))
    assert {step: rate for step, rate in rates(tmp_path / "out").items() if step > 4} == {
        step: rate for step, rate in rates(tmp_path / "planned").items() if step > 4
    }
    assert rates(tmp_path / "out")[5] > 0


def test_more_steps_and_then_fewer(stopped, flags, run, refused, train_file, caplog):
    results = run(stopped, *with_flag(flags, "--max_steps", 6), "--train_file", train_file)
    assert any("max_steps 4 -> 6" in record.getMessage() for record in caplog.records)
    assert json.loads((stopped / "trainer_state.json").read_text())["global_step"] == 6
    assert results["train_loss"] > 0
    message = refused(*with_flag(flags, "--max_steps", 4), "--train_file", train_file, output_dir=stopped)
    assert "--max_steps" in message and "end at step 4, but the checkpoint is of step 6" in message


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_complete_run_stays_as_it_is(name, run, train_file, validation_file, tmp_path, caplog):
    """Nothing is trained, and neither the card nor run_args.yaml says something else than what made the weights."""
    folder = tmp_path / "out"
    if name == "pretraining":
        write_documents(train_file, 60), write_documents(validation_file, 60, seed=1)
    flags = [*FROM_SCRATCH[name], "--train_file", train_file, "--validation_file", validation_file]
    flags += ["--block_size", 16, "--max_steps", 2, "--save_strategy", "steps", "--save_steps", 2]
    first = run(folder, *flags, script=SCRIPTS[name])
    kept = ("README.md", "run_args.yaml", "loss.png", "trainer_state.json", "model.safetensors")
    before = {name: (folder / name).read_bytes() for name in kept}
    caplog.clear()
    again = run(folder, *flags, "--per_device_eval_batch_size", 3, script=SCRIPTS[name])
    assert any("already complete at step 2: nothing trained" in record.getMessage() for record in caplog.records)
    assert {name: (folder / name).read_bytes() for name in kept} == before
    assert again["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)
    assert again["train_loss"] == first["train_loss"]


def test_a_complete_run_without_its_report_gets_it(flags, run, train_file, tmp_path):
    """It was killed between its last checkpoint and its end."""
    run(tmp_path / "out", *flags, "--train_file", train_file)
    (tmp_path / "out" / "README.md").unlink()
    (tmp_path / "out" / "model.safetensors").unlink()
    run(tmp_path / "out", *flags, "--train_file", train_file)
    assert (tmp_path / "out" / "README.md").is_file() and (tmp_path / "out" / "model.safetensors").is_file()


def test_another_model_in_the_folder(stopped, flags, refused, train_file, checkpoint):
    """Of the same type or another one: a line, not a traceback."""
    place = flags.index("--train_tokenizer")
    others = [*flags[:place], *flags[place + 8 :]]
    message = refused(
        *others, "--train_file", train_file, "--model_name_or_path", checkpoint("gpt2"), output_dir=stopped
    )
    assert "was trained with" in message and "no --model_type" in message


def test_another_size_from_a_configuration(flags, run, refused, train_file, tmp_path, checkpoint):
    """Where no flag tells, the models are compared."""
    place = flags.index("--train_tokenizer")
    base = [*flags[:place], *flags[place + 8 :], "--train_file", train_file]
    model = shutil.copytree(checkpoint("gpt2"), tmp_path / "model")
    run(tmp_path / "out", *base, "--model_name_or_path", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.3}))
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    message = refused(*base, "--model_name_or_path", model, output_dir=tmp_path / "out")
    assert "checkpoint-2 has another model: resid_pdrop is" in message and "0.3 here" in message


def test_pairs_of_ids_are_compared(tmp_path, run, refused):
    """A dataset of token ids has no token store; its rows count."""
    save_checkpoints(tmp_path)

    def save(name: str, first: int):
        rows = [
            {
                "input_ids": [2, first + row % 3, 3, 6, 3, 0],
                "token_type_ids": [0, 0, 0, 1, 1, 0],
                "attention_mask": [1, 1, 1, 1, 1, 0],
                "next_sentence_label": row % 2,
            }
            for row in range(16)
        ]
        Dataset.from_list(rows).save_to_disk(tmp_path / name)
        return tmp_path / name

    flags = ["--model_name_or_path", tmp_path / "pretraining", "--do_train", "--max_steps", 4]
    flags += [
        "--save_strategy",
        "steps",
        "--save_steps",
        2,
        "--per_device_train_batch_size",
        4,
        "--block_size",
        16,
        "--is_already_preprocessed",
    ]
    script = SCRIPTS["pretraining"]
    run(tmp_path / "out", *flags, "--dataset_path", save("rows", 5), script=script)
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    message = refused(*flags, "--dataset_path", save("others", 7), output_dir=tmp_path / "out", script=script)
    assert "was trained on another text" in message
    moved = shutil.copytree(tmp_path / "rows", tmp_path / "moved")
    run(tmp_path / "out", *flags, "--dataset_path", moved, script=script)
