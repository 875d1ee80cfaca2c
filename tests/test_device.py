"""How a process is set up for where it computes."""

import os

import pytest
import torch

from maml_l2l.system.device import computing, drawing_workers, find_device
from maml_l2l.system.errors import UserError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    assert find_device() == torch.device("cpu")
    with pytest.raises(UserError, match=r"run.device is cuda:3, which PyTorch does not find here. Use run.device=auto"):
        find_device("cuda:3")


def test_products_are_rounded_where_asked_and_the_callers_settings_come_back():
    cpu, before = torch.device("cpu"), (torch.get_num_threads(), torch.get_float32_matmul_precision())
    with computing(cpu, threads=before[0] + 1, precision="tf32"):
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (before[0] + 1, "high")
        with computing(cpu):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


@pytest.mark.parametrize(
    ("cores", "local_processes", "expected"), [(1, None, 1), (4, None, 4), (64, None, 8), (16, "4", 4), (2, "4", 0)]
)
def test_other_processes_draw_tasks_beside_a_gpu_only(monkeypatch, cores, local_processes, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    if local_processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_processes)
    assert drawing_workers(None, torch.device("cuda")) == expected
    assert drawing_workers(None, torch.device("cpu")) == 0
    assert drawing_workers(3, torch.device("cpu")) == 3
