"""The entry point of a script: errors that the user can fix end it with one line and an exit code, no traceback."""

import atexit
import functools
import gc
import inspect
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from utils.config.flag_names import with_flag_file, with_typed_names
from utils.config.parser import SECRET_FLAGS
from utils.environment import is_started_by_torchrun, local_world_size, num_machines, rank, world_size
from utils.errors import EarlyEnd, UsageError
from utils.launch import ended_with_launcher, first_to_fail, is_peer_failure


LOST_PROCESS = (
    "another process of this job has ended or does not respond (its output says why); run the same command again to "
    "resume from the newest checkpoint, if there is one"
)


def entry_point(main: Callable) -> Callable:
    """Turn `main(args)` into the entry point of a script.

    Errors that the user can understand end in one line and an exit code: 2 for a `UsageError`, which names flags as
    they were typed; the code of an `EarlyEnd`, printed with the command that resumes the run; 130 for Ctrl-C. If
    several processes run, only the first one to fail on each machine prints its error: the others found the same
    mistake, or failed because that one is gone.

    A run that ends without an error registers, with atexit, that its process group is destroyed at exit.
    """
    script = Path(inspect.getfile(main))

    def report(line: str) -> None:
        print(f"{script.name}: {' '.join(line.split())}", file=sys.stderr, flush=True)

    @functools.wraps(main)
    def run(args: list[str] | None = None):
        exit_code, result, launcher = 0, None, None
        try:
            with ended_with_launcher() as launcher:
                result = main(args)
        except UsageError as error:
            with first_to_fail() as is_first:
                if is_first:
                    words = sys.argv[1:] if args is None else args
                    report(f"error: {with_flag_file(with_typed_names(str(error), words), words)}")
            raise SystemExit(2) from error
        except KeyboardInterrupt:
            with first_to_fail() as is_first:
                if is_first:
                    report("interrupted")
            raise SystemExit(128 + signal.SIGINT) from None
        except EarlyEnd as end:
            if rank() == 0:
                report(str(end))
                if end.resume_flags is not None:
                    report(f"to resume: {resume_command(script, args, end.resume_flags, launcher)}")
            exit_code = end.exit_code
        except Exception as error:
            if world_size() == 1:
                raise
            with first_to_fail() as is_first:
                if is_first and is_peer_failure(error):
                    report(f"error: {LOST_PROCESS}: {error}")
                elif is_first:
                    traceback.print_exc()
            raise SystemExit(1) from error
        # Not after an error: then other processes may be stuck, and this one must not wait for them.
        atexit.register(_end_process_group)
        if exit_code:  # exit here, where nothing refers to the training any more: the dataloader's workers have ended
            raise SystemExit(exit_code)
        return result

    return run


def resume_command(script: Path, args: list[str] | None, flags: list[str], launcher: list[str] | None = None) -> str:
    """The command of this run followed by `flags`, quoted for a shell, without access tokens.

    Args:
        args: what main was called with. None stands for the command line, which is repeated as a whole. Under
            torchrun and `accelerate launch`, that is the launcher's command line or, if it is not known, a torchrun
            command with the same number of processes.
        launcher: the launcher's command line, from `ended_with_launcher`.
    """
    if args is not None:
        words = ["python", str(script), *args]
    elif not is_started_by_torchrun():
        words = sys.orig_argv
    else:
        sizes = ["--nnodes", str(num_machines()), "--nproc_per_node", str(local_world_size())]
        words = launcher or ["torchrun", *sizes, *sys.argv]
    words = [*words, *flags]
    for place, word in enumerate(words):
        flag = word.removeprefix("--").split("=")[0].replace("-", "_")
        if word.startswith("--") and flag in SECRET_FLAGS and "=" in word:
            words[place] = f"--{flag}=..."
        elif word.startswith("--") and flag in SECRET_FLAGS and place + 1 < len(words):
            words[place + 1] = "..."
    return shlex.join(words)


def _end_process_group() -> None:
    """Destroy the process group, if there is one, and wait until its threads have ended.

    A gloo thread that still holds a tensor while the interpreter shuts down aborts the process, even though the run
    succeeded (pytorch issue 190489). The threads end with the last reference to the group, which is held by models
    in reference cycles, hence the garbage collection.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
