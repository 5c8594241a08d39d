"""What a checkpoint holds besides the dataset's state, and how a trainer takes it up again."""

import logging
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import load_fsdp_model, load_fsdp_optimizer, save_fsdp_model, save_fsdp_optimizer
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_callback import ExportableState, TrainerState

from utils.errors import UsageError
from utils.models.adapter_saving import load_saved_adapter
from utils.models.adapters import load_weight_file
from utils.training.checkpoint_files import (
    describe_write_error,
    find_corruption,
    publish,
    remove,
    remove_leftovers,
    sync,
    unfinished_path,
)
from utils.training.endings import not_saved
from utils.training.output_dir import list_checkpoints
from utils.training.totals import TrainingTotals


logger = logging.getLogger(__name__)

# NumPy's random state is the only pickled object in a checkpoint, and consists of these.
NUMPY_STATE_TYPES = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


def save_training_state(trainer: Trainer, folder: Path) -> None:
    """Write optimizer, scheduler, gradient scaler and random generators. All processes call this."""
    accelerator, args = trainer.accelerator, trainer.args
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.save_checkpoint(folder)
    elif trainer.is_fsdp_enabled:
        plugin = accelerator.state.fsdp_plugin
        save_fsdp_model(plugin, accelerator, trainer.model, folder)
        save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, trainer.model, folder)
    elif args.should_save:
        torch.save(trainer.optimizer.state_dict(), folder / "optimizer.pt")
    if args.should_save:
        torch.save(trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")
        if accelerator.scaler is not None:
            torch.save(accelerator.scaler.state_dict(), folder / "scaler.pt")
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if args.device.type != "cpu":
        states[args.device.type] = torch.get_device_module(args.device).get_rng_state()
    torch.save(states, _rng_file(folder, args))


def load_training_state(trainer: Trainer, checkpoint: Path) -> None:
    """Take up optimizer, scheduler and gradient scaler. All processes call this.

    A checkpoint of `--save_only_model` has none of them: they start afresh, with a warning.
    """
    accelerator = trainer.accelerator
    if trainer.is_fsdp_enabled:
        plugin = accelerator.state.fsdp_plugin
        load_fsdp_optimizer(plugin, accelerator, trainer.optimizer, trainer.model, checkpoint)
    targets = {"scheduler.pt": trainer.lr_scheduler, "scaler.pt": accelerator.scaler}
    if not trainer.is_sharded:
        targets["optimizer.pt"] = trainer.optimizer
    for name, target in targets.items():
        path = checkpoint / name
        if target is None:
            continue
        if not path.is_file():
            logger.warning("%s is missing (--save_only_model?): it starts afresh, unlike in the earlier run", path)
            continue
        # On a GPU the states are copied there: mapping the file lets the processes of a machine share its pages.
        is_copied = trainer.args.device.type != "cpu"
        target.load_state_dict(torch.load(path, map_location="cpu", weights_only=True, mmap=is_copied))
    scheduler = trainer.lr_scheduler
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):  # the saved rates may be those of a shorter schedule
        parts = zip(trainer.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, base_rate, factor in parts:
            group["lr"] = base_rate * factor(scheduler.last_epoch)


def load_rng_state(checkpoint: Path, args) -> None:
    """Set the random generators as they were when the checkpoint was written, if it has those of this process."""
    path = _rng_file(checkpoint, args)
    if not path.is_file():
        return
    with torch.serialization.safe_globals(NUMPY_STATE_TYPES):
        states = torch.load(path, map_location="cpu", weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if args.device.type != "cpu" and args.device.type in states:
        torch.get_device_module(args.device).set_rng_state(states[args.device.type])


def load_weights(trainer: Trainer, checkpoint: Path) -> None:
    """Give the model the weights of a checkpoint; a sharded model after it has been prepared. All processes call this.

    Raises:
        UsageError: there are no such weights, or they do not fit the model or its adapter.
    """
    if trainer.is_deepspeed_enabled:
        deepspeed_load_checkpoint(trainer.model_wrapped, str(checkpoint))
    elif trainer.is_fsdp_enabled:  # also of an adapter: the shards are those of the whole model
        load_fsdp_model(trainer.accelerator.state.fsdp_plugin, trainer.accelerator, trainer.model, checkpoint)
    elif trainer.adapter is not None:
        load_saved_adapter(trainer.model, trainer.adapter, checkpoint)
    else:
        files = sorted(checkpoint.glob("model*.safetensors"))
        if not files:
            raise UsageError(f"{checkpoint}: no model.safetensors there; give another checkpoint")
        for file in files:
            load_weight_file(trainer.model, file)


def load_best_model(trainer: Trainer) -> TrainerState:
    """Load the weights of the best checkpoint, for `--load_best_model_at_end`; returns the state at that step."""
    checkpoint = Path(trainer.state.best_model_checkpoint)
    load_weights(trainer, checkpoint)
    best = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    logger.info(
        "loaded the weights of step %s of %s, the best by eval_%s: %.4f",
        f"{best.global_step:,}", f"{trainer.state.global_step:,}",
        trainer.args.metric_for_best_model.removeprefix("eval_"), trainer.state.best_metric,
    )  # fmt: skip
    return best


def load_trainer_state(trainer: Trainer, checkpoint: Path) -> None:
    """Take up step, epoch, log history, totals, and with `--restore_callback_states_from_checkpoint` the callbacks."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    saved = trainer.state.stateful_callbacks
    if TrainingTotals.__name__ in saved:  # a checkpoint of transformers' own Trainer has none: counting starts here
        trainer.counter.reset(TrainingTotals(**saved[TrainingTotals.__name__]["args"]))
    if trainer.args.restore_callback_states_from_checkpoint:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState) and type(callback).__name__ in saved:
                vars(callback).update(saved[type(callback).__name__]["attributes"])


def write_checkpoint(trainer: Trainer, metadata: dict) -> None:
    """Write checkpoint-STEP: every process writes its part, and when all parts are on disk, the folder gets its name.

    Args:
        metadata: about the run, for checkpoint.json.

    Raises:
        EarlyEnd: it could not be written. Earlier checkpoints are unchanged.
    """
    args, state = trainer.args, trainer.state
    checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    best = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
    if state.best_global_step and (best == checkpoint or best.exists()):
        state.best_model_checkpoint = str(best)
    folder = unfinished_path(checkpoint)
    _on_all_processes(trainer, checkpoint, lambda: _write_files(trainer, folder))
    _on_all_processes(trainer, checkpoint, lambda: sync(folder))  # on all machines, when all have written
    _on_all_processes(trainer, checkpoint, lambda: publish(checkpoint, metadata) if args.should_save else None)
    if args.should_save:
        remove_old_checkpoints(args.output_dir, args.save_total_limit, state.best_model_checkpoint)


def _write_files(trainer: Trainer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder), _internal_call=True)
    if not trainer.args.save_only_model:
        save_training_state(trainer, folder)
    trainer.train_dataset.save_state(folder)
    if trainer.args.should_save:
        for callback in [*trainer.callback_handler.callbacks, trainer.control]:
            if isinstance(callback, ExportableState):
                trainer.state.stateful_callbacks[type(callback).__name__] = callback.state()
        trainer.state.save_to_json(str(folder / "trainer_state.json"))


def _on_all_processes(trainer: Trainer, checkpoint: Path, write: Callable[[], None]) -> None:
    """Call `write` in all processes and wait for all. If one fails, nothing of the checkpoint stays."""
    error = None
    try:
        write()
    except Exception as raised:
        error = raised
    if not trainer.stop_requests.all_reduce_max(int(error is not None)):
        return
    if trainer.args.should_save:
        remove_leftovers(trainer.args.output_dir)
    reason = "another process could not write" if error is None else describe_write_error(error)
    if reason is None:
        raise error
    raise not_saved(trainer.args, checkpoint, reason) from error


def update_best_metric(state: TrainerState, value: float, greater_is_better: bool) -> bool:
    """Whether `value`, of `--metric_for_best_model`, is the best so far; if so, it is recorded with its step."""
    sign = 1 if greater_is_better else -1
    best = -math.inf if state.best_metric is None else sign * state.best_metric
    if not sign * value > best:
        return False
    state.best_metric, state.best_global_step = value, state.global_step
    return True


def remove_old_checkpoints(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Keep `limit` checkpoints (`--save_total_limit`): the newest, and the best one.

    Only checkpoints of this suite are removed: corrupt ones first, then the oldest.
    """
    if limit is None or limit <= 0:
        return
    checkpoints = list_checkpoints(output_dir)
    checkpoints = sorted(checkpoints, key=lambda path: find_corruption(path, read_all=False) is None)
    checkpoints = [str(path) for path in checkpoints]
    if best in checkpoints[:-1]:
        checkpoints.remove(best)
        checkpoints.insert(len(checkpoints) - 1, best)
        limit = max(limit, 2)  # the best one, and one to resume from
    for checkpoint in checkpoints[:-limit]:
        remove(Path(checkpoint))


def keep_best_checkpoint(trainer: Trainer) -> None:
    """At the end of a run with `--save_total_limit 1`, remove all checkpoints but the best, if there is a best one."""
    args, best = trainer.args, trainer.state.best_model_checkpoint
    if args.should_save and args.save_total_limit == 1 and best is not None:
        for checkpoint in list_checkpoints(args.output_dir):
            if str(checkpoint) != best:
                remove(checkpoint)


def _rng_file(folder: Path, args) -> Path:
    return folder / ("rng_state.pth" if args.world_size == 1 else f"rng_state_{args.process_index}.pth")
