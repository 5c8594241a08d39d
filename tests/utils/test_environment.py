"""Environment variables are changed within a block only."""

import os

import pytest

from utils.environment import launched_processes, temporary_environment


def test_variables_are_put_back(monkeypatch):
    monkeypatch.setenv("SET_BEFORE", "1")
    monkeypatch.setenv("REMOVED", "2")
    monkeypatch.delenv("NEW", raising=False)
    before = dict(os.environ)
    with pytest.raises(KeyError), temporary_environment(SET_BEFORE="3", REMOVED=None, NEW="4", ABSENT=None):
        assert dict(os.environ) == {
            name: value for name, value in before.items() if name not in ("SET_BEFORE", "REMOVED")
        } | {"SET_BEFORE": "3", "NEW": "4"}
        raise KeyError
    assert dict(os.environ) == before


def test_what_others_write_for_accelerate_is_put_back(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    before = dict(os.environ)
    with temporary_environment():
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        os.environ["FSDP_VERSION"] = "2"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 2),
        ({"WORLD_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"PMI_SIZE": "3"}, 3),
        ({"ACCELERATE_USE_CPU": "False"}, 1),
    ],
)
def test_launched_processes(variables, expected):
    names = ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "ACCELERATE_USE_CPU")
    with temporary_environment(**dict.fromkeys(names)), temporary_environment(**variables):
        assert launched_processes() == expected
