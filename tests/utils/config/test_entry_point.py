"""The entry point: errors in one line, exit codes, the command that resumes, and the end of a process group."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_python

from utils.config.entry_point import entry_point, resume_command
from utils.errors import EarlyEnd, UsageError


def test_message_is_one_line_and_the_exit_code_2(capsys):
    @entry_point
    def main(args):
        raise UsageError("one\n  two\t three")

    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "test_entry_point.py: error: one two three\n"


def test_only_the_first_process_of_a_machine_prints_the_message(capsys, monkeypatch):
    @entry_point
    def main(args):
        raise UsageError("once")

    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == ""


def test_other_errors_keep_their_traceback():
    @entry_point
    def main(args):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        main([])


END_OF_A_JOB = """
import atexit
import sys
from pathlib import Path

import torch
import torch._dynamo  # as the scripts do: imported later, it would hold the process group

from utils.config.entry_point import entry_point


@entry_point
def main(args):
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
    model.itself = model
    for _ in range(3):
        model(torch.ones(4, 8)).sum().backward()
    torch.distributed.all_reduce(torch.zeros(4))


def gloo_threads():
    return [path for path in Path("/proc/self/task").glob("*/comm") if "gloo" in path.read_text()]


def write_the_threads_left():
    Path(sys.argv[1], f"{rank}.txt").write_text(str(len(gloo_threads())))


atexit.register(write_the_threads_left)  # runs after what main registers
main()
main()
rank = torch.distributed.get_rank()
assert gloo_threads()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_a_job_ends_its_process_group(tmp_path):
    """All processes exit with 0, and no thread that communicates outlives the group."""
    script = tmp_path / "job.py"
    script.write_text(END_OF_A_JOB)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--standalone"]
    run_python(*launcher, script, tmp_path, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["0", "0"]


def test_command_that_resumes(monkeypatch):
    """As it was given, quoted, with what it needs besides; tokens are left out."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    script = Path("run_clm.py")
    args = ["--train_file", "my text.txt", "--hub_token", "hf_1", "--token=hf_2", "--output_dir", "out"]
    command = resume_command(script, args, ["--overwrite_output_dir", "false"])
    assert command == (
        "python run_clm.py --train_file 'my text.txt' --hub_token ... --token=... --output_dir out "
        "--overwrite_output_dir false"
    )
    monkeypatch.setattr("sys.orig_argv", ["python3", "-u", *command.split()[1:3]])
    assert resume_command(script, None, []) == "python3 -u run_clm.py --train_file"


def test_command_that_resumes_a_job_of_torchrun(monkeypatch):
    """Where the launcher's command line cannot be read, as far as its processes know it."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr("sys.argv", ["run_clm.py", "--output_dir", "out"])
    monkeypatch.setattr("os.getppid", lambda: "no such process")
    command = resume_command(Path("run_clm.py"), None, [])
    assert command == "torchrun --nnodes 2 --nproc_per_node 8 run_clm.py --output_dir out"


def test_early_end_is_one_line_and_its_code(capsys, monkeypatch):
    @entry_point
    def main(args):
        raise EarlyEnd("the disk\nis full", 7, ["--more", "1"])

    with pytest.raises(SystemExit) as end:
        main(["--output_dir", "out"])
    assert end.value.code == 7
    first, second = capsys.readouterr().err.splitlines()
    assert first == "test_entry_point.py: the disk is full"
    assert second.startswith("test_entry_point.py: to resume: python ") and second.endswith(
        "--output_dir out --more 1"
    )
    monkeypatch.setenv("RANK", "1")  # one process tells
    with pytest.raises(SystemExit):
        main([])
    assert not capsys.readouterr().err
