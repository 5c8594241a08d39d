"""How fast a model trains and is evaluated: ours against transformers' plain Trainer, from the same weights.

    python benchmarks/train_step.py [--n_embd 256] [--vocab_size 50257] [--block_size 256] [--batch_size 8]
    python benchmarks/train_step.py --memory
    python benchmarks/train_step.py --objective mlm [--models bert-base roberta-base bert-small]
    python benchmarks/train_step.py --objective plm
    python benchmarks/train_step.py --adapter seq_bn [--objective mlm]

The first prints the seconds of a training step and the tokens a second of both ways, in training and in evaluation,
and exits with 1 if their losses or accuracies differ. The second prints how much memory an evaluation takes on top of
the model, and for four times as many blocks. The third compares the training steps of masked models, on the same
masks, and the making of masked batches; the fourth likewise those of an XLNet, on the same targets in the same order.
The fifth trains an adapter, against the library's AdapterTrainer, and prints what it saves against training the whole
model. In float32, on synthetic tokens.
"""

import argparse
import copy
import gc
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import datasets
import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DataCollatorForLanguageModeling,
    DataCollatorForPermutationLanguageModeling,
    EvalPrediction,
    GPT2Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    XLNetConfig,
    default_data_collator,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from utils.compat import NO_ADAPTERS_REASON
from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.causal_collator import CausalLMCollator
from utils.examples.masked_collator import MaskedLMCollator
from utils.examples.packed import PackedBlocks, PackedBlocksWithSpecialTokens
from utils.examples.permutation_collator import PermutationLMCollator
from utils.models.adapters import Adapter, add_adapter
from utils.models.attention import use_maskless_attention
from utils.models.factorization_order import use_factorization_order
from utils.models.fast_gelu import use_fast_gelu
from utils.models.losses import use_summed_loss
from utils.tokens.token_store import TokenStore
from utils.tokens.tokenizer import special_token_affixes
from utils.training.batch_sampler import epoch_order
from utils.training.trainer import LMTrainer


LEAST_TRAINING_RATIO = 1.0
LEAST_EVALUATION_RATIO = 1.3
MOST_LOSS_DIFFERENCE = 1e-4  # of the loss; a wrong scale, a lost token or another order is far more
MOST_ACCURACY_DIFFERENCE = 1e-3  # of all targets; rounding may decide between two equally likely tokens
MOST_GROWTH = 32  # MB, from an evaluation to one of four times as many blocks

DEFAULTS = {
    "clm": {
        "block_size": 256, "batch_size": 8, "steps": 12, "warm_up_steps": 3, "repetitions": 5, "learning_rate": 1e-3
    },
    "mlm": {
        "block_size": 128, "batch_size": 8, "steps": 5, "warm_up_steps": 2, "repetitions": 3, "learning_rate": 1e-4
    },
    "plm": {
        "block_size": 256, "batch_size": 4, "steps": 5, "warm_up_steps": 2, "repetitions": 3, "learning_rate": 1e-4
    },
}  # fmt: skip

# Masked models, without dropout: the same masks then give the same losses
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
SMALL = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
MASKED_MODELS = {
    "bert-base": BertConfig(vocab_size=30522, **NO_DROPOUT),
    "roberta-base": RobertaConfig(vocab_size=50265, max_position_embeddings=514, **NO_DROPOUT),
    "bert-small": BertConfig(vocab_size=30522, **SMALL, **NO_DROPOUT),
}
LEAST_MASKED_RATIOS = {"bert-base": 1.15, "roberta-base": 1.3, "bert-small": 4.0}
MOST_MASKED_LOSS_DIFFERENCE = 1e-5  # of the loss
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL_TOKENS |= {"mask_token": "[MASK]"}  # with the ids 0 to 4
XLNET = XLNetConfig(vocab_size=32000, n_layer=6, d_model=512, n_head=8, d_inner=2048, dropout=0.0, pad_token_id=0)
LEAST_PERMUTED_RATIO = 1.5
LEAST_ADAPTER_RATIOS = {"clm": 1.0, "mlm": 1.15}
LEAST_COLLATING_RATIOS = {"mlm": 3.0, "plm": 20.0}
COLLATED_BATCHES = 20  # in a repetition
COLLATED_SHAPES = {"mlm": (32, 128), "plm": (32, 512)}
COLLATED_VOCAB_SIZE = 30522
MOST_SHARE_DIFFERENCE = 0.01  # of all tokens that may be masked; eight standard deviations of the share of 80,000


def main() -> int:
    flags = parse_flags()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        if flags.memory:
            compare_memory(flags, Path(folder))
            return 0
        if flags.adapter:
            return 0 if compare_adapters(flags, Path(folder)) else 1
        if flags.objective == "mlm":
            return 0 if compare_masked(flags, Path(folder)) else 1
        if flags.objective == "plm":
            trains_equally = compare_training(flags, permutation_lm(flags, Path(folder)))
            return 0 if compare_collating(flags, Path(folder) / "collating") and trains_equally else 1
        contest = causal_lm(flags, Path(folder))
        trains_equally = compare_training(flags, contest)
        evaluates_equally = compare_evaluation(flags, contest)
        return 0 if trains_equally and evaluates_equally else 1


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--objective", choices=list(DEFAULTS), default="clm", help="default: clm")
    parser.add_argument("--models", nargs="+", choices=list(MASKED_MODELS), help="of mlm (default: all)")
    parser.add_argument("--adapter", help="of clm and mlm: train an adapter of this configuration, such as seq_bn")
    parser.add_argument("--n_layer", type=int, default=4, help="of clm")
    parser.add_argument("--n_embd", type=int, default=256, help="of clm: a multiple of 64, the size of a head")
    parser.add_argument("--vocab_size", type=int, default=50257, help="of clm")
    parser.add_argument("--block_size", type=int, help=f"default: {defaults('block_size')}")
    parser.add_argument("--batch_size", type=int, help=f"default: {defaults('batch_size')}")
    parser.add_argument(
        "--steps", type=int, help=f"of a training run, warm-up included (default: {defaults('steps')})"
    )
    parser.add_argument(
        "--warm_up_steps", type=int, help=f"steps that are not measured (default: {defaults('warm_up_steps')})"
    )
    parser.add_argument(
        "--eval_blocks", type=int, default=64, help="of clm: a multiple of the batch size (default: 64)"
    )
    parser.add_argument(
        "--repetitions", type=int, help=f"of each way, alternating (default: {defaults('repetitions')})"
    )
    parser.add_argument("--learning_rate", type=float, help=f"default: {defaults('learning_rate')}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--memory", action="store_true", help="of clm: measure the memory of evaluation instead of the time"
    )
    flags = parser.parse_args()
    for name, default in DEFAULTS[flags.objective].items():
        if getattr(flags, name) is None:
            setattr(flags, name, default)
    if flags.objective != "mlm" and flags.models:
        parser.error("--models goes with --objective mlm")
    if flags.objective != "clm" and flags.memory:
        parser.error("--memory goes with --objective clm")
    if flags.adapter and NO_ADAPTERS_REASON:
        parser.error(f"--adapter: {NO_ADAPTERS_REASON}")
    if flags.adapter and (flags.memory or flags.objective == "plm"):
        parser.error("--adapter goes with --objective clm or mlm, without --memory")
    if flags.objective == "mlm":
        flags.models = list(dict.fromkeys(flags.models or MASKED_MODELS))
        if not 3 <= flags.block_size <= 512:
            parser.error("--block_size: give 3 to 512, for which these masked models have positions")
    if flags.n_embd % 64:
        parser.error("--n_embd: give a multiple of 64")
    if flags.objective == "clm" and flags.eval_blocks % flags.batch_size:
        parser.error(
            "--eval_blocks: give a multiple of --batch_size, since the plain Trainer's loss is a mean of means"
        )
    if flags.steps <= flags.warm_up_steps + 1:
        parser.error("--steps: give at least two more than --warm_up_steps")
    return flags


def defaults(name: str) -> str:
    return ", ".join(f"{values[name]} with {objective}" for objective, values in DEFAULTS.items())


def quiet() -> None:
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()


# The contests, each made from the flags and a folder for its files


@dataclass
class Contest:
    """Two ways to train one model on the same blocks in the same order.

    Attributes:
        trainers: by "ours" and "textbook", makes a Trainer with a model of its own at the initial weights, for the
            blocks to train on and, for clm, so many of them to evaluate on.
        textbook_scale: what the plain Trainer's losses are multiplied with, to be means over the targets.
        title: what its figures are called.
        least_training_ratio: the target for the speed of a training step.
        most_loss_difference: of the loss of each training step.
    """

    trainers: dict[str, Callable[..., Trainer]]
    textbook_scale: float = 1.0
    title: str = "training"
    least_training_ratio: float = LEAST_TRAINING_RATIO
    most_loss_difference: float = MOST_LOSS_DIFFERENCE


def causal_lm(flags: argparse.Namespace, folder: Path) -> Contest:
    """GPT-2 with random weights."""
    num_train_tokens = flags.steps * flags.batch_size * flags.block_size
    train_store = random_store(num_train_tokens, flags.vocab_size, flags.seed, folder / "train")
    train_blocks = PackedBlocks(train_store, flags.block_size)
    num_eval_tokens = 4 * flags.eval_blocks * flags.block_size
    eval_store = random_store(num_eval_tokens, flags.vocab_size, flags.seed + 1, folder / "eval")
    config = GPT2Config(
        n_layer=flags.n_layer,
        n_embd=flags.n_embd,
        n_head=flags.n_embd // 64,
        n_positions=flags.block_size,
        vocab_size=flags.vocab_size,
        bos_token_id=0,
        eos_token_id=0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    new_model = model_maker(AutoModelForCausalLM, config, flags.seed)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>")),
        eos_token="<|endoftext|>",
    )
    options = training_options(flags, folder)

    def ours(num_eval_blocks: int = flags.eval_blocks) -> LMTrainer:
        model = new_model()
        use_fast_gelu(model)  # as load_model does
        adapter = our_adapter(model, flags)
        use_summed_loss(model, shift=True)
        use_maskless_attention(model)
        return LMTrainer(
            model=model,
            args=LMTrainingArguments(do_train=True, do_eval=True, **options),
            train_dataset=train_blocks,
            eval_dataset=PackedBlocks(eval_store, flags.block_size, num_eval_blocks),
            data_collator=CausalLMCollator(tokenizer),
            processing_class=tokenizer,
            adapter=adapter,
        )

    def textbook(num_eval_blocks: int = flags.eval_blocks) -> Trainer:
        return plain_trainer(
            model=with_adapter(new_model(), flags),
            args=TrainingArguments(**options),
            train_dataset=as_dataset(train_blocks),
            eval_dataset=as_dataset(PackedBlocks(eval_store, flags.block_size, num_eval_blocks)),
            processing_class=tokenizer,
            compute_metrics=shifted_accuracy,
            preprocess_logits_for_metrics=most_likely,
        )

    # transformers (4.57 of all models, 5 still of GPT-2) divides the summed loss by the number of labels before the
    # shift, the first of each block included, which nothing predicts: its losses are (block_size - 1) / block_size of
    # the mean over the targets.
    return Contest({"ours": ours, "textbook": textbook}, flags.block_size / (flags.block_size - 1))


def masked_lm(flags: argparse.Namespace, folder: Path, name: str) -> Contest:
    """A masked model with random weights. Both ways train on the masks that our collator makes."""
    config = MASKED_MODELS[name]
    tokenizer = masked_tokenizer(config.vocab_size)
    num_examples = flags.steps * flags.batch_size
    blocks = framed_blocks(tokenizer, num_examples, flags.block_size, flags.seed, folder / "train")
    data_collator = MaskedLMCollator(tokenizer, seed=flags.seed)
    batch = data_collator(blocks.__getitems__(range(num_examples)))
    new_model = model_maker(AutoModelForMaskedLM, config, flags.seed)
    options = training_options(flags, folder)

    def ours() -> LMTrainer:
        model = new_model()
        use_fast_gelu(model)  # as load_model does
        adapter = our_adapter(model, flags)
        use_summed_loss(model, shift=False)
        return LMTrainer(
            model=model,
            args=LMTrainingArguments(do_train=True, **options),
            train_dataset=blocks,
            data_collator=data_collator,
            processing_class=tokenizer,
            adapter=adapter,
            target_name="masked_tokens",
        )

    def textbook() -> Trainer:
        return plain_trainer(
            model=with_adapter(new_model(), flags),
            args=TrainingArguments(**options),
            train_dataset=rows(batch["input_ids"].tolist(), batch["labels"].tolist()),
            processing_class=tokenizer,
        )

    return Contest(
        {"ours": ours, "textbook": textbook},
        title=f"training {name}",
        least_training_ratio=LEAST_ADAPTER_RATIOS["mlm"] if flags.adapter else LEAST_MASKED_RATIOS[name],
        most_loss_difference=MOST_MASKED_LOSS_DIFFERENCE,
    )


def permutation_lm(flags: argparse.Namespace, folder: Path) -> Contest:
    """XLNet with random weights. Both ways train on the targets and orders that our collator makes."""
    tokenizer = masked_tokenizer(XLNET.vocab_size)
    num_examples = flags.steps * flags.batch_size
    blocks = framed_blocks(tokenizer, num_examples, flags.block_size, flags.seed, folder / "train")
    data_collator = PermutationLMCollator(tokenizer, seed=flags.seed)
    batch = data_collator(blocks.__getitems__(range(num_examples)))
    new_model = model_maker(AutoModelForCausalLM, XLNET, flags.seed)
    options = training_options(flags, folder)
    # A row of target_mapping for each token, as DataCollatorForPermutationLanguageModeling has them
    each_token = torch.eye(flags.block_size)
    textbook_rows = []
    for input_ids, order in zip(batch["input_ids"], batch["order"], strict=True):
        is_target = order >= 0
        perm_mask = (is_target & (order[:, None] <= order)).float()
        labels = torch.where(is_target, input_ids, -100)
        textbook_rows.append(
            {"input_ids": input_ids, "perm_mask": perm_mask, "target_mapping": each_token, "labels": labels}
        )

    def ours() -> LMTrainer:
        model = new_model()
        use_factorization_order(model)
        use_summed_loss(model, shift=False)
        return LMTrainer(
            model=model,
            args=LMTrainingArguments(do_train=True, **options),
            train_dataset=blocks,
            data_collator=data_collator,
            processing_class=tokenizer,
            target_name="predicted_tokens",
        )

    def textbook() -> Trainer:
        return plain_trainer(
            model=new_model(),
            args=TrainingArguments(**options),
            train_dataset=textbook_rows,
            processing_class=tokenizer,
        )

    return Contest(
        {"ours": ours, "textbook": textbook},
        title="training xlnet",
        least_training_ratio=LEAST_PERMUTED_RATIO,
        most_loss_difference=MOST_MASKED_LOSS_DIFFERENCE,
    )


def model_maker(auto_class: type, config: PretrainedConfig, seed: int) -> Callable[[], PreTrainedModel]:
    """What makes models of the same random weights."""
    set_seed(seed)
    initial_model = auto_class.from_config(config)
    return lambda: copy.deepcopy(initial_model)


def our_adapter(model: PreTrainedModel, flags: argparse.Namespace) -> Adapter | None:
    """What `--adapter` asks for, as the scripts add it; the same weights at each call."""
    if not flags.adapter:
        return None
    set_seed(flags.seed)
    adapter_args = AdapterArguments(train_adapter=True, adapter_config=flags.adapter, adapter_name="measured")
    model_args = ModelArguments(model_type=model.config.model_type, train_tokenizer="bpe")
    return add_adapter(model, [], adapter_args, {}, model_args, DataArguments(dataset_name="none"))


def with_adapter(model: PreTrainedModel, flags: argparse.Namespace) -> PreTrainedModel:
    """The model with what `--adapter` asks for, as the library's manual adds it; the head frozen as in ours."""
    if flags.adapter:
        set_seed(flags.seed)
        import adapters  # here, since beside transformers 5 there is none

        adapters.init(model)
        model.add_adapter("measured", config=flags.adapter)
        model.train_adapter("measured")
        for name, parameter in model.named_parameters():
            if not name.startswith(model.base_model_prefix):
                parameter.requires_grad_(False)
    return model


def plain_trainer(**kwargs: Any) -> Trainer:
    """The library's own, with the examples in the order in which LMTrainer takes them."""
    trainer_class = Trainer
    if hasattr(kwargs["model"], "adapters_config"):
        from adapters import AdapterTrainer as trainer_class
    trainer = trainer_class(data_collator=default_data_collator, **kwargs)
    trainer.remove_callback(PrinterCallback)
    order = epoch_order(len(kwargs["train_dataset"]), kwargs["args"].seed, epoch=0).tolist()
    trainer._get_train_sampler = lambda *args: order
    return trainer


def training_options(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What both ways' TrainingArguments are told."""
    return {
        "output_dir": str(folder / "outputs"),
        "max_steps": flags.steps,
        "per_device_train_batch_size": flags.batch_size,
        "per_device_eval_batch_size": flags.batch_size,
        "learning_rate": flags.learning_rate,
        "bf16": False,
        "tf32": False if torch.cuda.is_available() else None,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": ["none"],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "seed": flags.seed,
    }


def random_store(num_tokens: int, vocab_size: int, seed: int, folder: Path, first_id: int = 0) -> TokenStore:
    """A token store of random tokens, some of which are frequent as words are: there is accuracy to gain."""
    tokens = first_id + np.random.default_rng(seed).zipf(1.3, num_tokens) % (vocab_size - first_id)
    dtype = np.dtype("uint16" if vocab_size <= 2**16 else "uint32")
    folder.mkdir()
    tokens.astype(dtype).tofile(folder / "tokens.bin")
    np.array([0, num_tokens], dtype=np.int64).tofile(folder / "offsets.bin")
    meta = {"documents": 1, "tokens": num_tokens, "bytes": num_tokens, "dtype": dtype.name}
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)


def masked_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """BERT's special tokens and words that have a number: no text is tokenized here."""
    tokens = [*SPECIAL_TOKENS.values(), *map(str, range(len(SPECIAL_TOKENS), vocab_size))]
    vocab = {token: index for index, token in enumerate(tokens)}
    word_level = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL_TOKENS["unk_token"]))
    return PreTrainedTokenizerFast(tokenizer_object=word_level, **SPECIAL_TOKENS)


def framed_blocks(
    tokenizer: PreTrainedTokenizerFast, num_blocks: int, block_size: int, seed: int, folder: Path
) -> PackedBlocksWithSpecialTokens:
    """So many full blocks of random tokens, none of them special, between [CLS] and [SEP]."""
    frame = special_token_affixes(tokenizer)
    num_tokens = num_blocks * (block_size - sum(map(len, frame)))
    store = random_store(num_tokens, len(tokenizer), seed, folder, first_id=len(SPECIAL_TOKENS))
    return PackedBlocksWithSpecialTokens(store, block_size, frame)


def as_dataset(blocks: PackedBlocks) -> Dataset:
    """The same blocks as `group_texts` would make them."""
    input_ids = [block["input_ids"].tolist() for block in (blocks[index] for index in range(len(blocks)))]
    return rows(input_ids, labels=input_ids)


def rows(input_ids: list[list[int]], labels: list[list[int]]) -> Dataset:
    attention_mask = [[1] * len(ids) for ids in input_ids]
    return Dataset.from_dict({"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels})


def most_likely(logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
    """What the well-known examples keep of the logits."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.argmax(dim=-1)


def shifted_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    labels = prediction.label_ids[:, 1:].reshape(-1)
    predictions = prediction.predictions[:, :-1].reshape(-1)
    return {"accuracy": float((predictions == labels).mean())}


# Training


class StepTimer(TrainerCallback):
    """Seconds of each training step, and from the end of one to the end of the next, where batches are made too."""

    def __init__(self):
        self.steps: list[float] = []
        self.ends: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.ends.append(time.perf_counter())
        self.steps.append(self.ends[-1] - self.start)


def compare_training(flags: argparse.Namespace, contest: Contest) -> bool:
    steps = {name: [] for name in contest.trainers}
    whole_steps = {name: [] for name in contest.trainers}
    losses = {}
    for repetition in range(flags.repetitions):
        for name in in_turn(contest.trainers, repetition):
            timer = StepTimer()
            trainer = contest.trainers[name]()
            trainer.add_callback(timer)
            recorded = record_losses(trainer)
            trainer.train()
            losses[name] = torch.stack(recorded).double().tolist()
            steps[name] += timer.steps[flags.warm_up_steps :]
            whole_steps[name] += np.diff(timer.ends)[flags.warm_up_steps - 1 :].tolist()
            del trainer, recorded
            gc.collect()  # its cycles would keep the model and the optimizer's state
    tokens = flags.batch_size * flags.block_size
    print(f"{contest.title}: medians of {len(steps['ours'])} steps of {tokens:,} tokens")
    for title, seconds in (("a step", steps), ("a step with its batch", whole_steps)):
        for name in contest.trainers:
            median = statistics.median(seconds[name])
            between = f"{1000 * min(seconds[name]):.0f} to {1000 * max(seconds[name]):.0f}"
            print(f"  {name}: {1000 * median:.1f} ms {title} ({between}), {tokens / median:,.0f} tokens/s")
    textbook_losses = [loss * contest.textbook_scale for loss in losses["textbook"]]
    difference = max(
        abs(ours - textbook) / textbook for ours, textbook in zip(losses["ours"], textbook_losses, strict=True)
    )
    print_ratio(contest.title, steps, contest.least_training_ratio)
    print(f"     with the making of batches: {median_ratio(whole_steps):.2f}x")
    is_equal = difference <= contest.most_loss_difference
    print(
        f"{verdict(is_equal)} the same losses, from {losses['ours'][0]:.6f} in the first step to "
        f"{losses['ours'][-1]:.6f} in the last: they differ by {difference:.1e} of the loss at most",
        flush=True,
    )
    return is_equal


def record_losses(trainer: Trainer) -> list[torch.Tensor]:
    """The list into which the trainer's losses go: its log would round them."""
    losses = []
    plain_training_step = trainer.training_step

    def training_step(*args, **kwargs) -> torch.Tensor:
        losses.append(plain_training_step(*args, **kwargs))
        return losses[-1]

    trainer.training_step = training_step
    return losses


# Evaluation


def compare_evaluation(flags: argparse.Namespace, contest: Contest) -> bool:
    trainers = {name: make() for name, make in contest.trainers.items()}
    # Trained weights, the same for both, so that there are right predictions to count
    trainers["textbook"].train()
    trainers["ours"].model.load_state_dict(trainers["textbook"].model.state_dict())
    for trainer in trainers.values():
        trainer.evaluate()  # to warm up
    seconds = {name: [] for name in trainers}
    metrics = {}
    for repetition in range(flags.repetitions):
        for name in in_turn(contest.trainers, repetition):
            synchronize()
            start = time.perf_counter()
            metrics[name] = trainers[name].evaluate()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    tokens = flags.eval_blocks * (flags.block_size - 1)
    print(f"evaluation: medians of {flags.repetitions} evaluations of {tokens:,} targets")
    for name in trainers:
        median = statistics.median(seconds[name])
        between = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f}"
        print(f"  {name}: {median:.3f} s ({between}), {tokens / median:,.0f} tokens/s")
    print_ratio("evaluation", seconds, LEAST_EVALUATION_RATIO)
    loss, accuracy = metrics["ours"]["eval_loss"], metrics["ours"]["eval_accuracy"]
    textbook_loss = metrics["textbook"]["eval_loss"] * contest.textbook_scale
    textbook_accuracy = metrics["textbook"]["eval_accuracy"]
    is_equal = (
        math.isclose(loss, textbook_loss, rel_tol=MOST_LOSS_DIFFERENCE)
        and abs(accuracy - textbook_accuracy) <= MOST_ACCURACY_DIFFERENCE
    )
    print(
        f"{verdict(is_equal)} the same loss, {loss:.6f} and {textbook_loss:.6f}, and accuracy, {accuracy:.6f} and "
        f"{textbook_accuracy:.6f}"
    )
    return is_equal


# Masked and permutation models


def compare_masked(flags: argparse.Namespace, folder: Path) -> bool:
    are_equal = []
    for name in flags.models:
        of_this = folder / name
        of_this.mkdir()
        are_equal.append(compare_training(flags, masked_lm(flags, of_this, name)))
    are_equal.append(compare_collating(flags, folder / "collating"))
    return all(are_equal)


def compare_collating(flags: argparse.Namespace, folder: Path) -> bool:
    """Time the collators alone, on examples that were fetched before: ours from blocks, the textbook's lists."""
    batch_size, block_size = COLLATED_SHAPES[flags.objective]
    tokenizer = masked_tokenizer(COLLATED_VOCAB_SIZE)
    blocks = framed_blocks(tokenizer, COLLATED_BATCHES * batch_size, block_size, flags.seed, folder)
    starts = range(0, len(blocks), batch_size)
    batches = [blocks.__getitems__(range(start, start + batch_size)) for start in starts]
    if flags.objective == "mlm":
        ours, textbook = MaskedLMCollator, DataCollatorForLanguageModeling
        collates_right = is_masked_right
    else:
        ours, textbook = PermutationLMCollator, DataCollatorForPermutationLanguageModeling
        collates_right = is_permuted_right
    collators = {"ours": ours(tokenizer, seed=flags.seed), "textbook": textbook(tokenizer)}
    examples = {"ours": batches, "textbook": [[as_row(example, tokenizer) for example in batch] for batch in batches]}
    seconds = {name: [] for name in collators}
    are_right = {}
    for repetition in range(1 + flags.repetitions):  # the first to warm up, and to check
        for name in in_turn(collators, repetition):
            collated = []
            for some_examples in examples[name]:
                start = time.perf_counter()
                collated.append(collators[name](some_examples))
                seconds[name].append(time.perf_counter() - start)
            if repetition == 0:
                are_right[name] = collates_right(collated, batches, tokenizer)
                seconds[name].clear()
    print(f"collating: medians of {len(seconds['ours'])} batches of {batch_size} examples of {block_size} tokens")
    for name in collators:
        median = statistics.median(seconds[name])
        between = f"{1000 * min(seconds[name]):.2f} to {1000 * max(seconds[name]):.2f}"
        print(f"  {name}: {1000 * median:.2f} ms a batch ({between}), {batch_size / median:,.0f} examples/s")
    print_ratio("collating", seconds, LEAST_COLLATING_RATIOS[flags.objective])
    print(f"{verdict(all(are_right.values()))} the labels are the targets' tokens, the share of targets is the same")
    return all(are_right.values())


def as_row(example: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """The example as transformers' run_mlm.py prepares it, with `return_special_tokens_mask`."""
    input_ids = example["input_ids"].tolist()
    special_ids = set(tokenizer.all_special_ids)
    return {
        "input_ids": input_ids,
        "attention_mask": [1] * len(input_ids),
        "special_tokens_mask": [int(index in special_ids) for index in input_ids],
    }


def is_masked_right(
    collated: list[dict[str, torch.Tensor]], batches: list[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerFast
) -> bool:
    """Whether the labels restore the examples, nothing special is a target and 15% of the rest are."""
    input_ids, labels = (torch.cat([batch[name] for batch in collated]).numpy() for name in ("input_ids", "labels"))
    tokens = np.stack([example["input_ids"] for batch in batches for example in batch])
    is_target = labels != -100
    is_special = np.isin(tokens, tokenizer.all_special_ids)
    restores = np.array_equal(np.where(is_target, labels, input_ids), tokens)
    share = is_target.sum() / (~is_special).sum()
    return restores and not (is_target & is_special).any() and abs(share - 0.15) <= MOST_SHARE_DIFFERENCE


def is_permuted_right(
    collated: list[dict[str, torch.Tensor]], batches: list[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerFast
) -> bool:
    """Whether the labels are the tokens at the targets' places, nothing special is one and 1 in 6 of the rest are."""
    num_targets = num_tokens = 0
    is_right = True
    for batch, examples in zip(collated, batches, strict=True):
        rows, columns = np.nonzero(batch["labels"].numpy() != -100)
        # The textbook's labels are at their places; of ours, `targets` are the places
        places = batch["targets"].numpy()[rows, columns] if "targets" in batch else columns
        tokens = np.stack([example["input_ids"] for example in examples])
        is_right &= np.array_equal(batch["labels"].numpy()[rows, columns], tokens[rows, places])
        is_right &= not np.isin(tokens[rows, places], tokenizer.all_special_ids).any()
        num_targets += len(rows)
        num_tokens += (~np.isin(tokens, tokenizer.all_special_ids)).sum()
    return is_right and abs(num_targets / num_tokens - 1 / 6) <= MOST_SHARE_DIFFERENCE


# Adapters


def compare_adapters(flags: argparse.Namespace, folder: Path) -> bool:
    """Ours against the library's trainer, then against our training of the whole model."""
    are_equal = []
    for name in flags.models if flags.objective == "mlm" else ["gpt2"]:
        of_this = folder / name
        of_this.mkdir()
        contest = masked_lm(flags, of_this, name) if flags.objective == "mlm" else causal_lm(flags, of_this)
        are_equal.append(compare_training(flags, contest))
        costs = {}
        for way, config in (("adapter", flags.adapter), ("whole model", None)):
            of_way = of_this / way
            of_way.mkdir()
            alone = argparse.Namespace(**{**vars(flags), "adapter": config})
            costs[way] = in_fresh_process(training_cost, alone, name, of_way)
            seconds, megabytes = costs[way]
            print(f"  ours, {way}: {1000 * seconds:.1f} ms a step, {megabytes:,.0f} MB more than before the training")
        ratios = [costs["whole model"][i] / costs["adapter"][i] for i in range(2)]
        print(f"     the adapter is {ratios[0]:.2f}x as fast as the whole model, in 1/{ratios[1]:.2f} of the memory")
    return all(are_equal)


def training_cost(flags: argparse.Namespace, name: str, folder: Path) -> tuple[float, float]:
    """Seconds of a training step of ours, the median, and how far the training raises the peak memory, in MB."""
    quiet()
    contest = masked_lm(flags, folder, name) if flags.objective == "mlm" else causal_lm(flags, folder)
    timer = StepTimer()
    trainer = contest.trainers["ours"]()
    trainer.add_callback(timer)
    before = peak_memory()
    trainer.train()
    return statistics.median(timer.steps[flags.warm_up_steps :]), peak_memory() - before


# Memory


def compare_memory(flags: argparse.Namespace, folder: Path) -> None:
    growths = {}
    for name in ("ours", "textbook"):
        for num_blocks in (flags.eval_blocks, 4 * flags.eval_blocks):
            of_this = folder / f"{name}{num_blocks}"
            of_this.mkdir()
            growths[name, num_blocks] = in_fresh_process(evaluation_memory, flags, name, num_blocks, of_this)
            growth = growths[name, num_blocks]
            print(f"{name}, {num_blocks} blocks: {growth:,.1f} MB more than before the evaluation", flush=True)
    growth = growths["ours", 4 * flags.eval_blocks] - growths["ours", flags.eval_blocks]
    print(
        f"{verdict(growth < MOST_GROWTH)} memory: {growth:,.1f} MB more for four times the blocks (target: below "
        f"{MOST_GROWTH} MB)"
    )


def evaluation_memory(flags: argparse.Namespace, name: str, num_blocks: int, folder: Path) -> float:
    """Peak memory of an evaluation beyond that of all that came before, in MB."""
    quiet()
    trainer = causal_lm(flags, folder).trainers[name](num_blocks)
    before = peak_memory()
    trainer.evaluate()
    return peak_memory() - before


def in_fresh_process(function: Callable, *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args).result()


def peak_memory() -> float:
    """Most memory that this process has had resident, in MB, pages of mapped files included."""
    # Not ru_maxrss, which a new process takes over from the one that started it
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status does not say the peak memory")


# What all parts share


def in_turn(ways: dict[str, Any], repetition: int) -> list[str]:
    """The ways in turn first, so that neither is always the one after the other."""
    return list(ways)[:: 1 if repetition % 2 == 0 else -1]


def median_ratio(seconds: dict[str, list[float]]) -> float:
    return statistics.median(seconds["textbook"]) / statistics.median(seconds["ours"])


def print_ratio(title: str, seconds: dict[str, list[float]], target: float) -> None:
    ratio = median_ratio(seconds)
    print(f"{verdict(ratio >= target)} {title}: {ratio:.2f}x the textbook way (target: {target}x)")


def verdict(is_met: bool) -> str:
    return "PASS" if is_met else "FAIL"


def synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


if __name__ == "__main__":
    sys.exit(main())
