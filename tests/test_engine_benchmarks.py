"""The benchmarks of engines: what they compare takes the same gradient, and the command measures, stops and draws."""

import argparse
import json
import sys

import pytest
import torch

from benchmarks import engines, inner_steps, peers
from maml_l2l.algorithms.loop import LoopMAML
from maml_l2l.backbones import Conv4

TINY = engines.Setting(ways=3, shots=1, queries=2, tasks=2, steps=2, inner_lr=0.4)
MODULES = {"higher": "higher", "torchopt": "torchopt", "parallel-metalearn": "metalearn"}


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("peer", MODULES)
def test_other_packages_take_the_gradient_of_learn2learns_loop(peer, first_order, downsample):
    pytest.importorskip(MODULES[peer])
    if (peer, first_order) == ("torchopt", True):
        pytest.skip("MetaSGD has no first-order mode")
    torch.manual_seed(0)
    network, tasks = Conv4(TINY.ways, filters=4, downsample=downsample), engines.random_tasks(TINY)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    peers.PEERS[peer](network, tasks, TINY.inner_lr, TINY.steps, first_order)()
    found = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert all(map(torch.equal, network.parameters(), before))
    LoopMAML(network, lr=TINY.inner_lr, first_order=first_order).meta_gradient(tasks, TINY.steps)
    expected = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert (found - expected).norm() < 1e-4 * expected.norm()


def options(**changes):
    usual = {"steps": [1, 2, 5], "repeats": 1, "device": "cpu", "limit_mib": 100.0, "limit_s": 1.0}
    return argparse.Namespace(**usual | changes)


@pytest.mark.parametrize(("mib", "ms"), [(60, 1), (1, 600)], ids=["memory", "time"])
def test_an_engine_that_passed_a_limit_is_not_asked_for_more_steps(mib, ms, monkeypatch):
    def measured(_, setting, *__):
        return {"added_mib": mib * setting.steps, "ms": ms * setting.steps}

    monkeypatch.setattr(inner_steps, "measured", measured)
    rows = list(inner_steps.rows_of("loop", TINY, options()))
    assert [(row["steps"], row["over_limit"]) for row in rows] == [(1, False), (2, True)]
    cells = inner_steps.cells(rows, [1, 2, 5], "added_mib", "{:.0f}")
    assert cells == [["loop", f"{mib}", f"{2 * mib}*", ""]]


def test_an_engine_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(ImportError):
        engines.make_step("higher", TINY, "second", "cpu")
    monkeypatch.setattr(inner_steps, "measured", lambda *_: {"skipped": "No module named 'higher'"})
    assert list(inner_steps.rows_of("higher", TINY, options())) == []
    assert "higher, 1 steps: skipped: No module named 'higher'" in capsys.readouterr().out


def test_the_command_measures_prints_and_draws(tmp_path, monkeypatch, capsys):
    files = ["--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.png")]
    sizes = ["--engines", "vectorized", "--steps", "2", "--tasks", "1", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["inner_steps", *sizes, *files, "--note", "a test"])
    inner_steps.main()
    written = json.loads((tmp_path / "x.json").read_text())
    assert (written["note"], written["setting"]["tasks"]) == ("a test", 1)
    assert [(row["engine"], row["steps"]) for row in written["rows"]] == [("vectorized", 2)]
    assert all(row["ms"] > 0 and 1 < row["added_mib"] < 500 for row in written["rows"])
    assert (tmp_path / "x.png").stat().st_size > 10_000
    assert "| vectorized |" in capsys.readouterr().out
