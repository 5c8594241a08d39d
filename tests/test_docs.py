"""README.md and docs/: commands parse; links, files, flags and messages exist; the edits of adapting.md work."""

import ast
import functools
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, make_lines
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer, HfArgumentParser

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.compat import FLAGS_OF_OTHER_VERSION, NO_ADAPTERS_REASON
from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.graphcore_arguments import IPUArguments
from utils.config.model_arguments import ModelArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments
from utils.tokens.token_store import TokenStore


SHARED = (ModelArguments, DataArguments, AdapterArguments, LMTrainingArguments)
DATACLASSES = {
    "run_clm.py": (run_clm.CausalLMArguments, *SHARED),
    "run_mlm.py": (run_mlm.MaskedLMArguments, *SHARED),
    "run_plm.py": (run_plm.PermutationLMArguments, *SHARED),
    "run_pretraining.py": (run_pretraining.PretrainingArguments, IPUArguments, *SHARED),
}
STARTERS = ("python", "torchrun", "accelerate", "sbatch")
# Flags of the programs that start the scripts, and one that is quoted as a mistake.
FLAGS_OF_TOOLS = {
    "--nnodes", "--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint",  # torchrun
    "--config_file", "--main_process_ip", "--machine_rank", "--tpu",  # accelerate launch
    "--help", "--help_all", "--trian_file",
}  # fmt: skip
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}


# Commands


def commands() -> list[tuple[str, str]]:
    """Each command in a bash block that starts a script, with its page."""
    found = []
    for page, text in TEXTS.items():
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = [word for word in line.split() if "=" not in word]
                if words and words[0] in STARTERS:
                    found.append((page, line))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_parse(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    script = next(index for index, word in enumerate(words) if re.fullmatch(r"run_\w+\.py", word))
    flags = words[script + 1 :]
    if NO_ADAPTERS_REASON and {"--train_adapter", "--load_adapter"} & set(flags):
        pytest.skip(NO_ADAPTERS_REASON)
    if "--num_processes" in flags:  # as in a process that has been started
        monkeypatch.setenv("LOCAL_WORLD_SIZE", flags[flags.index("--num_processes") + 1])
    *_, run_args = parse_arguments(*DATACLASSES[words[script]], args=flags)
    assert run_args


def test_there_are_commands():
    all_commands = [command for _, command in commands()]
    assert len(all_commands) >= 30
    assert all(sum(script in command for command in all_commands) >= 2 for script in DATACLASSES)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_parse(recipe):
    """And their header names the command that runs them."""
    script = re.search(r"(run_\w+\.py) recipes/" + recipe.name, recipe.read_text()).group(1)
    *_, run_args = parse_arguments(*DATACLASSES[script], args=[str(recipe)])
    assert set(run_args) == set(yaml.safe_load(recipe.read_text()))


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "README.md"])
def test_page_begins_with_a_command(page):
    beginning = "\n".join(TEXTS[page].splitlines()[:12])
    assert re.search(r"```bash\n[\w.=]+ \S", beginning)


# What the pages refer to


def test_readme_is_short_and_links_every_page():
    readme = TEXTS["README.md"]
    assert len(readme.splitlines()) <= 150
    assert set(TEXTS) - {"README.md"} <= set(re.findall(r"\]\(([^)]+)\)", readme))


@pytest.mark.parametrize("page", TEXTS)
def test_links(page):
    """Files exist, and so do the headings that are linked to."""
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[page]):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert anchor in anchors, link


@pytest.mark.parametrize("page", TEXTS)
def test_files_exist(page):
    pattern = r"(?<![\w/.-])(?:(?:utils|tests|recipes|benchmarks|docs)/[\w./-]+|run_\w+\.py|requirements[\w-]*\.txt)"
    names = {name.rstrip(".") for name in re.findall(pattern, TEXTS[page])}
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", TEXTS)
def test_flags_exist(page):
    known = FLAGS_OF_TOOLS | set(FLAGS_OF_OTHER_VERSION)
    for dataclasses in DATACLASSES.values():
        known |= set(HfArgumentParser(dataclasses)._option_string_actions)
    mentioned = set(re.findall(r"(?<![\w-])--[a-z]\w+", TEXTS[page]))
    assert sorted(mentioned - known) == []


def test_architecture_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = [path for path in (ROOT / "utils").rglob("*.py") if path.name != "__init__.py"]
    names = {f"{path.parent.name}/" for path in modules} | {path.name for path in modules}
    assert sorted(name for name in names if name not in text) == []


# Messages


@functools.cache
def message_patterns() -> dict[str, int]:
    """A regular expression for each string in the code that may be a message; it matches any value that is put in.

    With each, the length of its fixed text.
    """
    patterns = {}
    for path in [*ROOT.glob("run_*.py"), *(ROOT / "utils").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            constants = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            texts = [constant for constant in constants if isinstance(constant, str)]
            pattern = "".join(".*" if text is None else re.escape(str(text)).replace("%s", ".*") for text in constants)
            patterns[pattern] = sum(map(len, texts))
    return patterns


def quoted_messages() -> list[str]:
    blocks = re.findall(r"```text\n(.*?)```", TEXTS["docs/troubleshooting.md"], re.DOTALL)
    messages = [" ".join(block.split()) for block in blocks]
    return [re.sub(r"^run_\w+\.py: error: ", "", message) for message in messages if not message.startswith("torch.")]


@pytest.mark.parametrize("message", quoted_messages())
def test_quoted_messages_are_those_of_the_code(message):
    least = 0.2 * len(message)  # a pattern with less fixed text, such as "--dtype .*: .*", fits many messages
    assert any(length >= least and re.fullmatch(pattern, message) for pattern, length in message_patterns().items())


def test_there_are_messages():
    assert len(quoted_messages()) >= 20


# The edits of docs/adapting.md


def adapted(heading: str, tmp_path: Path):
    """A copy of run_clm.py with the edit under this heading, as a module."""
    section = TEXTS["docs/adapting.md"].split(f"## {heading}\n")[1].split("\n## ")[0]
    script = (ROOT / "run_clm.py").read_text()
    for hunk in re.search(r"```diff\n(.*?)```", section, re.DOTALL).group(1).split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
        after = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
        assert script.count(before) == 1
        script = script.replace(before, after)
    path = tmp_path / "my_run_clm.py"
    path.write_text(script)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def short_training(checkpoint, train_file, validation_file) -> list:
    return [
        "--model_name_or_path", checkpoint("gpt2", n_layer=3), "--train_file", train_file,
        "--validation_file", validation_file, "--block_size", 16, "--max_steps", 6, "--learning_rate", 1e-2,
    ]  # fmt: skip


def test_title_and_body_columns(run, checkpoint, tmp_path):
    rows = "".join(f'{{"title": "the {line[:9]}", "body": "{line}"}}\n' for line in make_lines(20))
    (tmp_path / "rows.jsonl").write_text(rows + '{"title": "left out", "body": ""}\n')
    flags = ["--train_file", tmp_path / "rows.jsonl", "--block_size", 16, "--max_steps", 1]
    model = checkpoint("gpt2")
    run(
        tmp_path / "out", *flags, "--model_name_or_path", model, "--do_train",
        script=adapted("Title and body columns", tmp_path),
    )  # fmt: skip
    (meta,) = (tmp_path / "cache" / "language_modeling").glob("*/meta.json")
    text = AutoTokenizer.from_pretrained(model).decode(TokenStore(meta.parent).tokens)
    assert text == "".join(f"the {line[:9]}\n\n{line}\n" for line in make_lines(20))


@pytest.mark.parametrize("is_stream", [False, True])
def test_own_examples(is_stream, run, short_training, validation_file, tmp_path):
    flags = ["--streaming", "--shuffle_buffer_size", 0] if is_stream else ["--group_by_length"]
    results = run(tmp_path / "out", *short_training, *flags, script=adapted("Your own examples", tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(short_training[1])
    lengths = [len(tokenizer(line)["input_ids"]) for line in validation_file.read_text().splitlines(keepends=True)]
    assert results["eval_samples"] == len(lengths)
    assert results["eval_tokens"] == sum(min(length, 16) - 1 for length in lengths)


def test_frozen_layers(run, short_training, tmp_path):
    run(tmp_path / "out", *short_training, script=adapted("Frozen layers", tmp_path))
    before, after = (load_file(folder / "model.safetensors") for folder in (short_training[1], tmp_path / "out"))
    is_equal = {name: torch.equal(before[name], after[name]) for name in before}
    frozen = {name for name in is_equal if ".h.0." in name or ".h.1." in name}
    assert len(frozen) > 20 and {name for name in is_equal if is_equal[name]} == frozen


def test_own_optimizer(run, short_training, tmp_path):
    flags = [*short_training, "--save_strategy", "steps", "--save_steps", 6, "--weight_decay", 0.25]
    run(tmp_path / "out", *flags, script=adapted("Your own optimizer", tmp_path))
    state = torch.load(tmp_path / "out" / "checkpoint-6" / "optimizer.pt", weights_only=True)
    assert all("mu_product" in values for values in state["state"].values())  # which NAdam alone has
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.25, 0.0]


def test_several_evaluation_sets(run, short_training, tmp_path, monkeypatch, caplog, refused):
    """The results of each are those of an evaluation on it alone, also of the best step, which one of them decides."""
    caplog.set_level("INFO", "utils")
    monkeypatch.chdir(tmp_path)
    sets = {"books": tmp_path / "books.txt", "handbook": tmp_path / "handbook.txt"}
    for seed, path in enumerate(sets.values(), start=5):
        path.write_text("\n".join(make_lines(10 * seed, seed)) + "\n")
    script = adapted("Several evaluation sets", tmp_path)
    flags = [*short_training, "--eval_strategy", "steps", "--eval_steps", 2, "--save_strategy", "best"]
    flags += ["--load_best_model_at_end"]
    line = refused(*flags, script=script)
    assert "eval_loss: no such result" in line and "eval_books_loss" in line and "eval_handbook_accuracy" in line

    flags += ["--metric_for_best_model", "eval_books_loss", "--greater_is_better"]  # so the best is not the last
    results = run(tmp_path / "out", *flags, script=script)
    assert results["best_step"] == 2
    state = (tmp_path / "out" / "trainer_state.json").read_text()
    card = {
        (result.dataset_split, result.metric_type): result.metric_value
        for result in ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    }
    for name, path in sets.items():
        alone = ["--model_name_or_path", tmp_path / "out", "--validation_file", path, "--block_size", 16, "--do_eval"]
        expected = run(tmp_path / name, *alone)
        for figure in ("loss", "perplexity", "bits_per_byte", "accuracy", "bytes", "samples", "tokens"):
            assert results[f"eval_{name}_{figure}"] == pytest.approx(expected[f"eval_{figure}"], rel=1e-6), figure
        perplexity = results[f"eval_{name}_perplexity"]
        assert (
            f"step 2 | eval {name} loss {results[f'eval_{name}_loss']:.4f} | perplexity {perplexity:.3f}"
            in caplog.text
        )
        assert state.count(f'"eval_{name}_loss"') == 3  # after steps 2, 4, 6; the best is of step 2
        assert card[name, "perplexity"] == perplexity
    assert not results.keys() & {"eval_loss", "perplexity", "eval_perplexity"}


@pytest.mark.parametrize(("target", "last_step"), [("100.0", 2), ("0.0", 6)])
def test_callback(target, last_step, run, short_training, tmp_path, monkeypatch):
    module = adapted("A callback", tmp_path)
    own_class = module.StopAtLoss
    monkeypatch.setattr(module, "StopAtLoss", lambda _: own_class(float(target)))
    flags = [*short_training, "--eval_strategy", "steps", "--eval_steps", 2]
    run(tmp_path / "out", *flags, script=module)
    state = (tmp_path / "out" / "trainer_state.json").read_text()
    assert f'"global_step": {last_step},' in state
