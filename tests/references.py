"""What evaluation must report, counted in plain transformers: one example at a time, summed in float64."""

import math
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    XLNetLMHeadModel,
)

from utils.examples.masked_collator import MaskedLMCollator
from utils.examples.permutation_collator import PermutationLMCollator
from utils.examples.pretraining_collator import PretrainingCollator


def causal_reference(folder: Path, text_file: Path, block_size: int, max_blocks: int | None = None) -> dict:
    """For run_clm, with the lines of a file as documents and a byte-level tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    lines = text_file.read_text().splitlines(keepends=True)
    ids = [token for line in lines for token in tokenizer(line)["input_ids"]]
    nll, targets, correct, num_bytes = 0.0, 0, 0, 0
    for start in list(range(0, len(ids), block_size))[:max_blocks]:
        block = ids[start : start + block_size]
        with torch.no_grad():
            logits = model(torch.tensor([block])).logits[0].double()
        for position in range(1, len(block)):
            nll -= logits[position - 1].log_softmax(-1)[block[position]].item()
            correct += int(logits[position - 1].argmax() == block[position])
            num_bytes += len(tokenizer.convert_ids_to_tokens(block[position]))  # byte level: a character per byte
            targets += 1
    return {
        "eval_loss": nll / targets,
        "perplexity": math.exp(nll / targets),
        "bits_per_byte": nll / math.log(2) / num_bytes,
        "eval_accuracy": correct / targets,
        "eval_tokens": targets,
        "eval_bytes": num_bytes,
    }


def framed_examples(tokenizer, text_file: Path, length: int, line_by_line: bool) -> list[list[int]]:
    """The examples of run_mlm and run_plm: pieces of text between special tokens, built by hand from the file."""
    content = length - 2
    lines = text_file.read_text().splitlines(keepends=not line_by_line)
    documents = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    if line_by_line:
        pieces = [ids[:content] for ids in documents if ids]
    else:
        ids = sum(documents, [])
        pieces = [ids[start : start + content] for start in range(0, len(ids), content)]
    return [[tokenizer.cls_token_id, *piece, tokenizer.sep_token_id] for piece in pieces]


def masked_reference(folder: Path, text_file: Path, length: int, line_by_line: bool = False, **masks) -> dict:
    """For run_mlm, with the masks of `MaskedLMCollator`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    collator = MaskedLMCollator(tokenizer, **({"seed": 42} | masks))
    nll, targets, correct = 0.0, 0, 0
    examples = framed_examples(tokenizer, text_file, length, line_by_line)
    for index, ids in enumerate(examples):
        batch = collator([{"input_ids": np.array(ids), "index": index, "epoch": 0}])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"]).logits[0].double()
        for position, label in enumerate(batch["labels"][0].tolist()):
            if label != -100:
                nll -= logits[position].log_softmax(-1)[label].item()
                correct += int(logits[position].argmax() == label)
                targets += 1
    return {
        "eval_loss": nll / targets,
        "eval_accuracy": correct / targets,
        "eval_masked_tokens": targets,
        "eval_samples": len(examples),
    }


def permutation_reference(folder: Path, text_file: Path, length: int, line_by_line: bool = False, **choices) -> dict:
    """For run_plm, with the targets and the orders of `PermutationLMCollator`, one target at a time.

    For each target the model reads the example anew, with one row of target_mapping, and with another token in the
    place of each that it must not see.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = XLNetLMHeadModel.from_pretrained(folder).eval()
    collator = PermutationLMCollator(tokenizer, **({"seed": 42} | choices))
    nll, targets, correct = 0.0, 0, 0
    examples = framed_examples(tokenizer, text_file, length, line_by_line)
    for index, ids in enumerate(examples):
        batch = collator([{"input_ids": np.array(ids), "index": index, "epoch": 0}])
        order = batch["order"][0]
        is_hidden = (order >= 0) & (order[:, None] <= order)
        for label, place in zip(batch["labels"][0], batch["targets"][0], strict=True):
            if label == -100:
                continue
            assert ids[place] == label
            target_mapping = torch.zeros(1, 1, len(ids))
            target_mapping[0, 0, place] = 1
            visible_ids = torch.where(is_hidden[place], 7, batch["input_ids"])
            with torch.no_grad():
                output = model(visible_ids, perm_mask=is_hidden[None].float(), target_mapping=target_mapping)
            logits = output.logits[0, 0].double()
            nll -= logits.log_softmax(-1)[label].item()
            correct += int(logits.argmax() == label)
            targets += 1
    return {
        "eval_loss": nll / targets,
        "eval_accuracy": correct / targets,
        "eval_predicted_tokens": targets,
        "eval_samples": len(examples),
    }


def pair_reference(folder: Path, pairs, **masks) -> dict:
    """For run_pretraining, with the masks of `PretrainingCollator`; `pair_loss` is nsp_loss or sop_loss.

    Args:
        pairs: the examples, as its datasets give them.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForPreTraining.from_pretrained(folder).eval()
    collator = PretrainingCollator(tokenizer, **({"seed": 42} | masks))
    sums = dict.fromkeys(("mlm_loss", "mlm_accuracy", "pair_loss", "pair_accuracy"), 0.0)
    targets = 0
    for example in pairs:
        batch = collator([example])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])[:2]
        token_logits, pair_logits = logits[0][0].double(), logits[1][0].double()
        for position, label in enumerate(batch["labels"][0].tolist()):
            if label != -100:
                sums["mlm_loss"] -= token_logits[position].log_softmax(-1)[label].item()
                sums["mlm_accuracy"] += int(token_logits[position].argmax() == label)
                targets += 1
        label = batch["next_sentence_label"].item()
        sums["pair_loss"] -= pair_logits.log_softmax(-1)[label].item()
        sums["pair_accuracy"] += int(pair_logits.argmax() == label)
    expected = {name: total / (targets if name[0] == "m" else len(pairs)) for name, total in sums.items()}
    return expected | {"eval_masked_tokens": targets, "eval_samples": len(pairs)}
