"""How a process is set up for where it computes."""

import os

import pytest
import torch

from maml_l2l.config import Run
from maml_l2l.device import choose_device, drawing_workers
from maml_l2l.errors import UserError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    assert choose_device(Run()) == torch.device("cpu")
    with pytest.raises(UserError, match=r"run.device is cuda:3, which PyTorch does not find here. Use run.device=auto"):
        choose_device(Run(device="cuda:3"))


def test_products_are_rounded_where_asked_and_nowhere_else():
    choose_device(Run(device="cpu", precision="tf32"))
    assert torch.get_float32_matmul_precision() == "high"
    choose_device(Run(device="cpu"))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("cores", "local_processes", "expected"), [(1, None, 1), (4, None, 4), (64, None, 8), (16, "4", 4), (2, "4", 0)]
)
def test_other_processes_draw_tasks_beside_a_gpu_only(monkeypatch, cores, local_processes, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    if local_processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_processes)
    assert drawing_workers(Run(), torch.device("cuda")) == expected
    assert drawing_workers(Run(), torch.device("cpu")) == 0
    assert drawing_workers(Run(workers=3), torch.device("cpu")) == 3
