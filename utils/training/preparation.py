"""What a training run starts with: model, optimizer, scheduler and state, fresh or from a checkpoint."""

import logging
import math
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_callback import TrainerState

from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples.base import Examples
from utils.training.checkpointing import load_trainer_state, load_training_state, load_weights
from utils.training.output_dir import start_output_dir
from utils.training.precision import log_cost_of_dropout


logger = logging.getLogger(__name__)


def check_model_flags(model: PreTrainedModel, args: LMTrainingArguments) -> None:
    """Refuse what does not work with this model.

    Raises:
        UsageError: a training in float16, or gradient checkpointing or Liger's kernels for a model without them.
    """
    if args.do_train and model.dtype == torch.float16:
        raise UsageError("--dtype float16 cannot hold the updates of a training: use --fp16, or --dtype bfloat16")
    if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UsageError(f"--gradient_checkpointing: {type(model).__name__} does not support it; leave it out")
    if args.use_liger_kernel:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # an optional package

        if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            raise UsageError(f"--use_liger_kernel: Liger has no kernels for {model.config.model_type}; leave it out")


def check_sharding_flags(trainer: Trainer) -> None:
    """Refuse what does not work with a model sharded by FSDP or DeepSpeed.

    Raises:
        UsageError: a configuration whose weights could not be saved at the end, or `--auto_find_batch_size`.
    """
    args = trainer.args
    if args.auto_find_batch_size and trainer.is_sharded:
        raise UsageError("--auto_find_batch_size does not work with a sharded model; leave it out")
    if not trainer.is_deepspeed_enabled:
        return
    zero = trainer.accelerator.deepspeed_config.get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise UsageError(
            "--deepspeed: with ZeRO stage 3, set stage3_gather_16bit_weights_on_model_save (accelerate: "
            "zero3_save_16bit_model) to true: the model could not be saved without it"
        )


def training_length(args, num_batches: int) -> tuple[int, int, int]:
    """Updates per epoch, updates in all, and epochs that are begun.

    Args:
        args: TrainingArguments.
        num_batches: of an epoch, for a process.
    """
    updates_per_epoch = math.ceil(num_batches / args.gradient_accumulation_steps)
    max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates_per_epoch)
    return updates_per_epoch, max_steps, math.ceil(max_steps / updates_per_epoch)


def prepare_run(
    trainer: Trainer, dataloader: DataLoader, max_steps: int, num_epochs: int, checkpoint: Path | None
) -> nn.Module:
    """Prepare model, optimizer, scheduler and state, fresh or as they were at a checkpoint.

    Returns:
        The model in its wrapper for DDP, FSDP or DeepSpeed.
    """
    if checkpoint is not None and not trainer.is_sharded:
        load_weights(trainer, checkpoint)
    model = prepare_model(trainer, max_steps)
    trainer.is_prepared = True
    trainer.state = TrainerState(epoch=0, train_batch_size=trainer.batch_size)
    if checkpoint is not None:
        if trainer.is_sharded:
            load_weights(trainer, checkpoint)
        load_training_state(trainer, checkpoint)
        load_trainer_state(trainer, checkpoint)
    trainer.state.compute_steps(trainer.args, max_steps)
    trainer.state.init_training_references(trainer, max_steps, num_epochs, None)
    handler = trainer.callback_handler
    handler.model, handler.optimizer, handler.lr_scheduler = trainer.model, trainer.optimizer, trainer.lr_scheduler
    handler.train_dataloader = dataloader
    return model


def start_output(trainer: Trainer, max_steps: int, evaluation_is_due: bool) -> bool:
    """Prepare the output folder, unless the checkpoint is of the last step: then everything there stays as it is.

    Args:
        evaluation_is_due: the run ended before the evaluation of its last step.

    Returns:
        Whether there is anything left to do.

    Raises:
        UsageError: the checkpoint is of a later step than the last one.
    """
    step = trainer.state.global_step
    if step > max_steps:
        raise UsageError(
            f"--max_steps or --num_train_epochs: the training would end at step {max_steps:,}, but the checkpoint is "
            f"of step {step:,}: give more, or --overwrite_output_dir to start over"
        )
    if step == max_steps and not evaluation_is_due:
        logger.info("already complete at step %s: nothing trained", f"{step:,}")
        return False
    trainer.accelerator.wait_for_everyone()  # until every process has checked the output folder
    if trainer.is_world_process_zero():
        start_output_dir(trainer.args, trainer.run_args)
    trainer.accelerator.wait_for_everyone()
    return True


def prepare_model(trainer: Trainer, max_steps: int) -> nn.Module:
    """Create optimizer and scheduler, and wrap the model for DDP, FSDP, DeepSpeed and mixed precision.

    Sets `trainer.model_wrapped`, `trainer.optimizer` and `trainer.lr_scheduler`; with FSDP also `trainer.model`.

    Returns:
        The wrapped model.
    """
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled:
        trainer.optimizer, trainer.lr_scheduler = deepspeed_init(trainer, num_training_steps=max_steps)
    if trainer.is_fsdp_enabled and not accelerator.is_fsdp2:  # FSDP1 replaces the parameters
        trainer.model = accelerator.prepare(trainer.model)
    trainer.create_optimizer_and_scheduler(num_training_steps=max_steps)
    trainer.model.train()
    log_cost_of_dropout(trainer.model.config, trainer.args)
    if trainer.args.torch_compile:
        # The number of targets differs between batches: without this, the vocabulary head would split the graph.
        torch._dynamo.config.capture_dynamic_output_shape_ops = True
    if trainer.args.world_size > 1 and not trainer.is_sharded:
        choose_search_for_unused_parameters(trainer)
    if hasattr(trainer.lr_scheduler, "step"):
        model, trainer.optimizer = accelerator.prepare(trainer.model, trainer.optimizer)
    else:  # DeepSpeed's configuration names the scheduler
        model, trainer.optimizer, trainer.lr_scheduler = accelerator.prepare(
            trainer.model, trainer.optimizer, trainer.lr_scheduler
        )
    if trainer.is_fsdp_enabled:
        trainer.model = model
    trainer.model_wrapped = model
    return model


def choose_search_for_unused_parameters(trainer: Trainer) -> None:
    """Let DDP search for parameters without a gradient in each step only if the model may have some.

    The search costs a pass over the graph, and torch warns of it in each process if it finds none. Parameters that
    depend on the batch (experts) or on chance (layer drop) are always searched for, and so are those of a stream
    without evaluation data, of which no example is at hand. `--ddp_find_unused_parameters` decides it instead.
    """
    handler = trainer.accelerator.ddp_handler
    if trainer.args.ddp_find_unused_parameters is not None or not handler.find_unused_parameters:
        return
    settings = trainer.model.config.to_dict()
    if any("expert" in name or "layerdrop" in name and value for name, value in settings.items()):
        return
    dataset = trainer.train_dataset if trainer.train_dataset.num_examples else trainer.eval_dataset
    dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
    if dataset is not None:
        handler.find_unused_parameters = bool(unused_parameters(trainer, dataset))


def unused_parameters(trainer: Trainer, dataset: Examples) -> list[str]:
    """The names of the trained parameters that the loss of the first example does not depend on."""
    model = trainer.model
    batch = send_to_device(trainer.data_collator([dataset[0]]), trainer.args.device)
    with torch.random.fork_rng():  # the dropout of the training does not change
        num_targets = trainer.counter.count([batch])
        loss = trainer.compute_loss(model, batch, num_items_in_batch=num_targets)
    trainer.counter.reset()
    used, seen, nodes = set(), set(), [loss.grad_fn]
    while nodes:  # backward through the graph, to the parameters at its ends
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            used.add(id(getattr(node, "variable", None)))
            nodes += [next_node for next_node, _ in node.next_functions]
    return [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in used
    ]


def add_embedding_noise(model: nn.Module, alpha: float) -> torch.utils.hooks.RemovableHandle:
    """NEFTune (Jain et al. 2023), for `--neftune_noise_alpha`: add uniform noise to the input embeddings in training.

    Its magnitude is alpha / sqrt(length * width). The handle removes the noise.
    """

    def add_noise(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        magnitude = alpha / torch.sqrt(torch.tensor(output.size(1) * output.size(2)))
        return output + torch.zeros_like(output).uniform_(-magnitude, magnitude)

    return model.get_input_embeddings().register_forward_hook(add_noise)
