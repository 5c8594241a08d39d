"""What the trainer uses of transformers' Trainer: public methods alone, and those with the parameters it relies on."""

import ast
import inspect
from pathlib import Path

import pytest
from conftest import ROOT
from transformers import Trainer
from transformers.trainer_callback import CallbackHandler, TrainerState

from utils.compat import CompatTrainer
from utils.training.trainer import LMTrainer
from utils.training.training_loop import TrainingLoop


# Each public method that is overridden or called, with the parameters that are passed to it by name or position.
OVERRIDDEN = {
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "create_accelerator_and_postprocess": [],
    "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
    "get_optimizer_cls_and_kwargs": ["args", "model"],
    "get_train_dataloader": [],
    "init_hf_repo": [],
    "push_to_hub": [],
    "save_model": ["output_dir", "_internal_call"],
    "train": ["resume_from_checkpoint"],
}
CALLED = {
    "add_callback": ["callback"],
    "create_optimizer_and_scheduler": ["num_training_steps"],
    "floating_point_ops": ["inputs"],
    "is_world_process_zero": [],
    "log": ["logs"],
    "remove_callback": ["callback"],
    "save_metrics": ["split", "metrics"],
    "save_state": [],
    "store_flos": [],
    "training_step": ["model", "inputs", "num_items_in_batch"],
}
# Private names of Trainer that are used, each with its reason. At most eight; today there is none.
PRIVATE: dict[str, str] = {}
CLASSES = (CompatTrainer, TrainingLoop, LMTrainer)
SOURCES = [*sorted((ROOT / "utils" / "training").glob("*.py")), ROOT / "utils" / "compat.py"]


@pytest.mark.parametrize("name", [*OVERRIDDEN, *CALLED])
def test_trainer_has_the_method_with_its_parameters(name):
    parameters = inspect.signature(getattr(Trainer, name)).parameters
    assert set((OVERRIDDEN | CALLED)[name]) <= set(parameters)


def test_overridden_methods_are_listed():
    overridden = {
        name for kind in CLASSES for name in vars(kind) if hasattr(Trainer, name) and not name.startswith("__")
    }
    assert overridden == set(OVERRIDDEN) | set(PRIVATE)


def test_private_names_are_listed():
    """Of Trainer, its state and its callbacks: those that are read or called on `self`, `trainer` and their parts."""
    of_transformers = {
        name
        for kind in (Trainer, TrainerState, CallbackHandler)
        for name in {*vars(kind), *_attributes_set_by(kind)}
        if name.startswith("_") and not name.startswith("__")
    }
    ours = {name for kind in CLASSES for name in {*vars(kind), *_attributes_set_by(kind)}}
    used = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in of_transformers - ours:
                used.add(node.attr)
    assert used == set(PRIVATE)
    assert not of_transformers & ours, "a private name of ours hides one of Trainer's"
    assert len(PRIVATE) <= 8


def test_a_step_of_training_is_in_one_place():
    """The steps of an update, from the batches to the callback after it, in at most 60 lines."""
    lines, _ = inspect.getsourcelines(TrainingLoop.update)
    assert len(lines) <= 60
    source = "".join(lines)
    steps = ["count(", "on_step_begin", "training_step", "clip_grad_norm_", "optimizer.step", "lr_scheduler.step"]
    places = [source.index(step) for step in [*steps, "zero_grad", "on_step_end"]]
    assert places == sorted(places)


def _attributes_set_by(kind: type) -> set[str]:
    """The names of attributes that the class's code assigns to `self`."""
    code = ast.parse(Path(inspect.getfile(kind)).read_text())
    definitions = [node for node in ast.walk(code) if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    return {
        node.attr
        for definition in definitions
        for node in ast.walk(definition)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
        if node.value.id == "self"
    }
