"""The commands of the manuals that this suite replaces, word for word, with flags that make them short.

A hub on loopback serves tiny models and datasets under the names in the commands. Names without an owner (gpt2,
wikitext) are redirected.
"""

import io
import json
import random
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import ROOT, make_lines, make_masked_model, make_model, make_xlnet, needs_adapters
from references import causal_reference, masked_reference, pair_reference, permutation_reference
from transformers import BertConfig, BertForPreTraining

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.tokens.tokenizer_training import train_tokenizer


SCRIPTS = {"run_clm.py": run_clm, "run_mlm.py": run_mlm, "run_plm.py": run_plm, "run_pretraining.py": run_pretraining}
SHORT = ["--max_steps", "2", "--bf16", "false", "--report_to", "none", "--save_strategy", "no"]
SMALL_GPT2 = "n_embd=16,n_head=2,n_layer=2,n_positions=102"
SMALL_BERT = (
    "hidden_size=16,num_attention_heads=2,num_hidden_layers=2,intermediate_size=32,max_position_embeddings=128"
)
WIKITEXT = "--dataset_name wikitext --dataset_config_name wikitext-2-raw-v1"
BATCHES = "--per_device_train_batch_size 8 --per_device_eval_batch_size 8"
TEXT_FILES = "--train_file path/to/train.txt --validation_file path/to/validation.txt"

CLM = f"run_clm.py --model_name_or_path gpt2 {WIKITEXT} {BATCHES} --do_train --do_eval --output_dir /tmp/test-clm"
CLM_FILES = CLM.replace(WIKITEXT, TEXT_FILES)
MLM = CLM.replace("run_clm.py", "run_mlm.py").replace("gpt2", "roberta-base").replace("test-clm", "test-mlm")
PLM = f"run_plm.py --model_name_or_path=xlnet-base-cased {WIKITEXT} --do_train --do_eval --output_dir /tmp/test-plm"
SCRATCH = CLM.replace(
    "--model_name_or_path gpt2", f'--model_type gpt2 --tokenizer_name gpt2 --config_overrides="{SMALL_GPT2}"'
)
ADAPTER = "--train_adapter --adapter_config seq_bn --overwrite_output_dir"
WIKITEXT_103 = "--output_dir output --dataset_name wikitext --dataset_config_name wikitext-103-raw-v1"
IPU = (
    "--tokenizer_name bert-base-uncased --ipu_config_name . --dataset_name Graphcore/wikipedia-bert-128 --do_train "
    "--do_eval --output_dir /tmp/bert"
)
OSCAR = (
    "run_mlm.py --output_dir=M --model_type=roberta --config_name=M --tokenizer_name=M --dataset_name=oscar "
    "--dataset_config_name=unshuffled_deduplicated_no --max_seq_length=128 --weight_decay=0.01 "
    "--per_device_train_batch_size=128 --per_device_eval_batch_size=128 --learning_rate=3e-4 --warmup_steps=1000 "
    "--overwrite_output_dir --pad_to_max_length --num_train_epochs=18 --adam_beta1=0.9 --adam_beta2=0.98 --push_to_hub"
)
COMMANDS = {
    # 1: transformers' language-modeling examples and AdapterHub's
    "clm": CLM,
    "clm files": CLM_FILES,
    "clm scratch": SCRATCH,
    "clm adapter": f"{CLM} {ADAPTER}",
    "clm adapter files": f"{CLM_FILES} {ADAPTER}",
    "clm adapter scratch": f"{SCRATCH} {ADAPTER}",
    # 2
    "mlm": MLM,
    "mlm files": MLM.replace(WIKITEXT, TEXT_FILES),
    "mlm lines": MLM.replace(WIKITEXT, TEXT_FILES) + " --line_by_line",
    "mlm padded lines": MLM.replace(WIKITEXT, TEXT_FILES) + " --line_by_line --pad_to_max_length",
    "mlm padded": f"{MLM} --pad_to_max_length --max_seq_length 32",
    "mlm scratch": MLM.replace(
        "--model_name_or_path roberta-base",
        "--model_type roberta --tokenizer_name roberta-base --config_overrides="
        '"hidden_size=16,num_attention_heads=2,num_hidden_layers=2,intermediate_size=32"',
    ) + " --max_seq_length 64",
    "mlm adapter": f"{MLM} {ADAPTER}",
    "mlm adapter lines": MLM.replace(WIKITEXT, TEXT_FILES) + f" --line_by_line {ADAPTER}",
    # 3
    "plm": PLM,
    "plm files": PLM.replace(WIKITEXT, TEXT_FILES),
    "plm lines": PLM.replace(WIKITEXT, TEXT_FILES) + " --line_by_line",
    # 4: which name neither --do_train nor --do_eval
    "mlm 103": f"run_mlm.py --model_name_or_path distilbert/distilbert-base-cased {WIKITEXT_103}",
    "clm 103": f"run_clm.py --model_name_or_path distilbert/distilgpt2 {WIKITEXT_103}",
    "mlm one file": "run_mlm.py --model_name_or_path distilbert/distilbert-base-cased --output_dir output "
    "--train_file path/to/train.txt",
    "clm one file": "run_clm.py --model_name_or_path distilbert/distilgpt2 --output_dir output "
    "--train_file path/to/train.txt",
    # 5: optimum-graphcore's
    "pretraining": f"run_pretraining.py --config_name bert-base-uncased {IPU}",
    "pretraining scratch": "run_pretraining.py --model_type bert-base-uncased "
    f'{IPU} --config_overrides="{SMALL_BERT}"',
    # 6: transformers' Flax examples
    "oscar": OSCAR,
}  # fmt: skip


# Tokens per example: the number of positions of the small model, or what the command says.
LENGTHS = {"clm": 128, "clm scratch": 102, "clm adapter scratch": 102, "mlm": 64, "mlm padded": 32, "plm": 512}


def in_parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(buffer)
    return buffer.getvalue()


def dataset_files(configurations: dict[str, dict[str, list[dict]]]) -> dict[str, bytes]:
    """The files of a dataset on the Hub: Parquet, and a README.md that names configurations and splits."""
    card, files = ["---", "configs:"], {}
    for name, splits in configurations.items():
        card += [f"- config_name: {name}", "  data_files:"]
        for split, rows in splits.items():
            path = f"{name}/{split}-00000-of-00001.parquet"
            card += [f"  - split: {split}", f"    path: {path}"]
            files[path] = in_parquet(rows)
    return files | {"README.md": "\n".join([*card, "---", ""]).encode()}


def wikitext(num_lines: int, seed: int) -> list[dict]:
    """Articles with empty lines and headings, as WikiText has them."""
    rows = []
    for number, line in enumerate(make_lines(num_lines, seed)):
        rows += [{"text": ""}, {"text": f" = {line[:10]} = \n"}] if number % 10 == 0 else []
        rows.append({"text": f" {line} \n"})
    return rows


def wikitext_splits(seed: int) -> dict[str, list[dict]]:
    return {"train": wikitext(200, seed), "validation": wikitext(45, seed + 1), "test": wikitext(20, seed + 2)}


WIKITEXT_ROWS = {"wikitext-2-raw-v1": wikitext_splits(10), "wikitext-103-raw-v1": wikitext_splits(20)}
OSCAR_TEXTS = ["\n".join(make_lines(20, seed)) for seed in range(20)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tokenizer, masked_tokenizer):
    """A folder with the models, their names, the files of the datasets by name, and the pairs of one dataset."""
    folder = tmp_path_factory.mktemp("shelf")
    wordpiece = train_tokenizer("wordpiece", [make_lines(200)], 300)
    unigram = train_tokenizer("unigram", [make_lines(200)], 60, add_special_tokens=True)
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    bert = BertForPreTraining(BertConfig(**sizes, vocab_size=len(wordpiece), max_position_embeddings=128))
    distilbert = make_masked_model("distilbert", len(wordpiece))
    models = {
        "openai-community/gpt2": (make_model("gpt2", len(tokenizer)), tokenizer),
        "distilbert/distilgpt2": (make_model("gpt2", len(tokenizer), n_layer=1), tokenizer),
        "FacebookAI/roberta-base": (
            make_masked_model("roberta", len(masked_tokenizer), max_position_embeddings=66), masked_tokenizer,
        ),
        "distilbert/distilbert-base-cased": (distilbert, wordpiece),
        "xlnet/xlnet-base-cased": (make_xlnet(len(unigram)), unigram),
        "google-bert/bert-base-uncased": (bert, wordpiece),
    }  # fmt: skip
    for name, (model, model_tokenizer) in models.items():
        model.save_pretrained(folder / name)
        model_tokenizer.save_pretrained(folder / name)
    lines = make_lines(80, seed=5)
    pairs = []  # [CLS] A [SEP] B [SEP] and padding
    for number in range(40):
        row = wordpiece(lines[number], lines[-number - 1], max_length=128, padding="max_length", truncation=True)
        pairs.append(dict(row) | {"next_sentence_label": number % 2})
    oscar = {"unshuffled_deduplicated_no": {"train": [{"id": 0, "text": text} for text in OSCAR_TEXTS]}}
    files = {
        "Salesforce/wikitext": dataset_files(WIKITEXT_ROWS),
        "Graphcore/wikipedia-bert-128": {"data/train.parquet": in_parquet(pairs)},
        "oscar-corpus/oscar": dataset_files(oscar),
    }
    return folder, list(models), files, pairs


@pytest.fixture
def stocked_hub(shelf, hub, monkeypatch, tmp_path):
    """The hub with these models and datasets. The current folder has the text files in the commands."""
    folder, models, datasets_by_name, _ = shelf
    for name in models:
        hub.add("model", name, folder / name)
    for name, files in datasets_by_name.items():
        hub.add("dataset", name, files)
    for name in (*models, *datasets_by_name):
        if name.split("/")[0] not in ("distilbert", "Graphcore"):
            hub.redirects[name.split("/")[1]] = name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "train.txt").write_text("\n".join(make_lines(200)) + "\n")
    (tmp_path / "path" / "to" / "validation.txt").write_text("\n".join(make_lines(45, 1)) + "\n")
    return hub


def run_command(command: str, tmp_path, *more: str) -> dict:
    """Run the command with the test's folder in place of /tmp/, and return its results."""
    script, *words = shlex.split(command.replace("/tmp/", f"{tmp_path}/"))
    SCRIPTS[script].main([*words, *SHORT, "--cache_dir", str(tmp_path / "cache"), *more])
    output_dir = next(word for word in words if "output_dir" in word and "overwrite" not in word)
    output_dir = output_dir.split("=")[1] if "=" in output_dir else words[words.index(output_dir) + 1]
    return json.loads((tmp_path / output_dir / "all_results.json").read_text()) | {"folder": tmp_path / output_dir}


def held_out(values: list) -> list:
    """The 5% on which a command without validation data evaluates."""
    indices = random.Random(42).sample(range(len(values)), max(round(len(values) * 0.05), 1))
    return [values[index] for index in sorted(indices)]


def validation_text(name: str, tmp_path) -> str:
    """The text on which a command evaluates."""
    if "103" in name:
        return "".join(row["text"] for row in WIKITEXT_ROWS["wikitext-103-raw-v1"]["validation"])
    if "one file" in name:
        return "".join(held_out((tmp_path / "path/to/train.txt").read_text().splitlines(keepends=True)))
    if "path/to" in COMMANDS[name]:
        return (tmp_path / "path/to/validation.txt").read_text()
    return "".join(row["text"] for row in WIKITEXT_ROWS["wikitext-2-raw-v1"]["validation"])


def held_out_pairs(rows: list[dict]) -> list[dict]:
    """The held-out pairs without their padding."""
    pairs = []
    for index, row in enumerate(held_out(rows)):
        length = sum(row["attention_mask"])
        pair = {key: np.array(row[key][:length]) for key in ("input_ids", "token_type_ids")}
        pairs.append(pair | {"next_sentence_label": row["next_sentence_label"], "index": index, "epoch": 0})
    return pairs


def plain_evaluation(name: str, folder: Path, shelf, tmp_path) -> dict:
    """Evaluate the model in the folder on the text of a command, in plain transformers."""
    script = name.split()[0]
    if script == "pretraining":
        expected = pair_reference(folder, held_out_pairs(shelf[3]))
        return expected | {"eval_loss": expected["mlm_loss"] + expected["pair_loss"]}
    text_file = tmp_path / "validation-text.txt"
    text_file.write_text(validation_text(name, tmp_path))
    if script == "clm":
        return causal_reference(folder, text_file, LENGTHS.get(name, LENGTHS["clm"]))
    reference = {"mlm": masked_reference, "plm": permutation_reference}[script]
    return reference(
        folder, text_file, LENGTHS.get(name, LENGTHS[script]), line_by_line="line_by_line" in COMMANDS[name]
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_adapters if "adapter" in name else []) for name in COMMANDS if name != "oscar"],
)
def test_command(name, shelf, stocked_hub, tmp_path):
    """Its evaluation equals that of plain transformers with the model and the text in the command."""
    results = run_command(COMMANDS[name], tmp_path)
    files = {path.name for path in results["folder"].iterdir()}
    assert ("adapter.safetensors" in files) == ("adapter" in name)
    assert ("model.safetensors" in files) == ("adapter" not in name or "scratch" in name)
    folder, tolerance = results["folder"], 1e-5
    if "adapter" in name:  # it starts near the identity, and two updates change little
        tolerance = 1e-2
    if "adapter" in name and "scratch" not in name:
        folder = shelf[0] / ("openai-community/gpt2" if "clm" in name else "FacebookAI/roberta-base")
    expected = plain_evaluation(name, folder, shelf, tmp_path)
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=tolerance)
    for key in expected.keys() & {"eval_samples", "eval_tokens", "eval_masked_tokens", "eval_predicted_tokens"}:
        assert results[key] == expected[key]
    state = json.loads((results["folder"] / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    asked = {request.split(" ", 1)[1] for request in stocked_hub.requests}
    assert any(path.endswith("config.json") for path in asked)
    if "--dataset_name" in COMMANDS[name]:
        assert any(path.startswith("/datasets/") and ".parquet" in path or "/cdn/" in path for path in asked)


def test_oscar(stocked_hub, masked_tokenizer, tmp_path, monkeypatch):
    """--overwrite_output_dir keeps the configuration and the tokenizer in M, which is uploaded as M."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    folder = tmp_path / "M"
    model = make_masked_model("roberta", len(masked_tokenizer), max_position_embeddings=130)
    model.config.save_pretrained(folder)
    masked_tokenizer.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    results = run_command(COMMANDS["oscar"], tmp_path)
    (text,) = held_out(OSCAR_TEXTS)
    (tmp_path / "held-out.txt").write_text(text)
    expected = masked_reference(folder, tmp_path / "held-out.txt", 128)
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert results["eval_samples"] == expected["eval_samples"]
    assert (folder / "tokenizer.json").read_bytes() == before["tokenizer.json"]
    config = json.loads((folder / "config.json").read_text())
    assert config.items() >= {"hidden_size": 16, "num_hidden_layers": 2, "model_type": "roberta"}.items()
    uploaded = stocked_hub.repositories["model", "tester/M"].files()
    assert {*before, "model.safetensors", "README.md"} <= set(uploaded)
    assert uploaded["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    # The same command again, with the output folder there: the results are the same.
    again = run_command(COMMANDS["oscar"], tmp_path)
    assert again["eval_loss"] == results["eval_loss"]


def test_streamed_from_the_hub(stocked_hub, tmp_path):
    """The same evaluation as without --streaming."""
    whole = run_command(COMMANDS["clm"], tmp_path, "--learning_rate", "0")
    streamed = run_command(COMMANDS["clm"], tmp_path, "--learning_rate", "0", "--streaming", "--overwrite_output_dir")
    assert streamed["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-6)


def test_the_page_on_migrating_has_each_script():
    text = (ROOT / "docs" / "migrating.md").read_text()
    assert all(script in text for script in SCRIPTS)
