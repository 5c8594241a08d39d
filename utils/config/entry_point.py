"""A script's way in: what the user can fix ends in one line and an exit code, without a traceback."""

import atexit
import functools
import gc
import inspect
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from utils.config.parser import SECRET_FLAGS
from utils.errors import EarlyEnd, UsageError
from utils.launch import first_to_fail, is_peer_failure


LOST_PROCESS = (
    "another process of this job has ended or does not answer (its output says why); the same command goes on from "
    "the newest checkpoint, if there is one"
)


def entry_point(main: Callable) -> Callable:
    """Make `main(args)` a script's way in: what the user can understand ends in one line, without a traceback.

    Exit code 2 for a `UsageError`; that of an `EarlyEnd`, which the first process prints, with the command that
    resumes; 130 for Ctrl-C. Of several processes, all find the same mistake, or one fails and the others miss it: the
    first of each machine prints its error, another one ends in silence.
    """
    script = Path(inspect.getfile(main))

    @functools.wraps(main)
    def run(args: list[str] | None = None):
        def tell(line: str) -> None:
            print(f"{script.name}: {' '.join(line.split())}", file=sys.stderr, flush=True)

        exit_code, result = 0, None
        try:
            result = main(args)
        except UsageError as error:
            with first_to_fail() as is_first:
                if is_first:
                    tell(f"error: {error}")
            raise SystemExit(2) from error
        except KeyboardInterrupt:
            with first_to_fail() as is_first:
                if is_first:
                    tell("interrupted")
            raise SystemExit(128 + signal.SIGINT) from None
        except EarlyEnd as end:
            if int(os.environ.get("RANK", 0)) == 0:
                tell(str(end))
                if end.resume_flags is not None:
                    tell(f"to go on: {resume_command(script, args, end.resume_flags)}")
            exit_code = end.exit_code
        except Exception as error:
            if int(os.environ.get("WORLD_SIZE", 1)) == 1:
                raise
            with first_to_fail() as is_first:
                if is_first and is_peer_failure(error):
                    tell(f"error: {LOST_PROCESS}: {error}")
                elif is_first:
                    traceback.print_exc()
            raise SystemExit(1) from error
        atexit.register(_end_process_group)  # not after an error: other processes may be stuck, this one is to leave
        if exit_code:  # here, where nothing refers to the training any more: the dataloader's workers have ended
            raise SystemExit(exit_code)
        return result

    return run


def resume_command(script: Path, args: list[str] | None, flags: list[str]) -> str:
    """The command of this run and `flags`, quoted for a shell, without tokens.

    Args:
        args: what main was called with; None for the command line. Then the whole of it is repeated as it was given;
            under torchrun and `accelerate launch`, whose processes know nothing of their launcher's flags, it is the
            launcher's, which Linux tells (else torchrun with the number of processes).
    """
    if args is not None:
        words = ["python", str(script), *args]
    elif "TORCHELASTIC_RUN_ID" not in os.environ:
        words = sys.orig_argv
    else:
        launcher = Path(f"/proc/{os.getppid()}/cmdline")
        sizes = ["--nnodes", os.environ["GROUP_WORLD_SIZE"], "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"]]
        words = ["torchrun", *sizes, *sys.argv]
        if launcher.is_file():
            words = launcher.read_bytes().decode().rstrip("\0").split("\0")
    words = [*words, *flags]
    for place, word in enumerate(words):
        flag = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and flag in SECRET_FLAGS and "=" in word:
            words[place] = f"--{flag}=..."
        elif word.startswith("--") and flag in SECRET_FLAGS and place + 1 < len(words):
            words[place + 1] = "..."
    return shlex.join(words)


def _end_process_group() -> None:
    """Leave the process group, if there is one, and wait until its threads have ended.

    A thread of gloo that still holds a tensor while the interpreter shuts down aborts the process, after a run in
    which all went well (pytorch issue 190489). The threads end with the last reference to the group, and the models
    that refer to it are in cycles.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
