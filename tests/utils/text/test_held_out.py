"""Documents of a stream that are held out for evaluation."""

import numpy as np
from sharded_text import make_documents, write_shards

from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.text.corpus import load_corpus
from utils.text.document_stream import HeldOut


def test_held_out_rows():
    """Disjoint and complete by construction; the share within four standard errors, in every shard."""
    for percentage in (1, 5, 50):
        for shard in range(3):
            held_out = HeldOut(percentage, seed=7)(shard, np.arange(20_000))
            error = (percentage / 100 * (1 - percentage / 100) / 20_000) ** 0.5
            assert abs(held_out.mean() - percentage / 100) < 4 * error
    rows = np.arange(1000)
    assert not np.array_equal(HeldOut(50, 7)(0, rows), HeldOut(50, 8)(0, rows))
    assert not np.array_equal(HeldOut(50, 7)(0, rows), HeldOut(50, 7)(1, rows))
    assert np.array_equal(HeldOut(50, 7)(0, rows)[500:], HeldOut(50, 7)(0, rows[500:]))


def test_held_out_documents_are_not_trained_on(tmp_path):
    documents = make_documents(300)
    folder = write_shards(tmp_path / "text", documents, 3)
    data_args = DataArguments(train_file=[str(folder)], streaming=True, validation_split_percentage=20)
    training_args = LMTrainingArguments(output_dir=str(tmp_path / "out"), max_steps=5, use_cpu=True, bf16=False)
    splits = load_corpus(data_args, training_args, str(tmp_path / "cache"), None)
    texts = {split: [text for batch in splits[split].iter(10) for text in batch["text"]] for split in splits}
    assert not set(texts["train"]) & set(texts["validation"])
    assert sorted(texts["train"] + texts["validation"]) == sorted(documents)
    assert 30 < len(texts["validation"]) < 90
