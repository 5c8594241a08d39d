"""The adapters library does not work with transformers 5: its flags are refused in one line with the way out."""

import pytest

import run_clm
import run_mlm
import run_plm
import run_pretraining


@pytest.mark.parametrize("script", [run_clm, run_mlm, run_plm, run_pretraining], ids=lambda script: script.__name__)
@pytest.mark.parametrize("flags", [["--train_adapter"], ["--load_adapter", "an/adapter", "--do_eval"]], ids=" ".join)
def test_adapters_are_refused(script, flags, refused, train_file, validation_file):
    """Before the model, which does not exist, is looked up."""
    texts = ["--train_file", train_file, "--validation_file", validation_file]
    line = refused("--model_name_or_path", "no/model", *texts, *flags, script=script)
    assert flags[0] in line and "transformers 4.57.6" in line and "pip install -r requirements.txt" in line
