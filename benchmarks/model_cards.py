"""What stands beside the checkpoints in `pretrained/`: a card for each, the README, and the table of their names."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import common, omniglot_runs
from benchmarks.omniglot_runs import (
    CELLS,
    best,
    figure,
    hardware,
    network,
    plus_minus,
    published_networks,
    start,
    task_of,
    trained_by,
    training_command,
    training_time,
)
from maml_l2l.system.machine import describe

README_PAGE = """\
# Pretrained networks

Each file is one network, in the format that training writes. From Python, by name or by path:

```python
from maml_l2l import FewShotClassifier, load_pretrained

checkpoint = load_pretrained("omniglot_5w1s")
classifier = FewShotClassifier(checkpoint="pretrained/{first}")
```

Accuracy in % on test tasks, inductive, as `predict` works (transductive: see the cards):

{table}

- The names stand for files in [names.json](names.json): for each task size the network that scored best on validation
  tasks. Those that end in `_inductive` were trained as `predict` works, and are the better ones there. A network that
  was trained with more ways serves fewer: the first outputs of its head are used.
- A training of your own starts from a network by `--set model.pretrained=pretrained/NAME.pth
  algorithm.learn_inner_lr=true`, with `model.downsample=max_pool` where the network has max-pooling, and with
  `algorithm.update=meta_curvature` where it has Meta-Curvature.
- These networks read Omniglot as the paper does: dark strokes on light paper. Each card states the limits.
- [drawings.pth](drawings.md), named `drawings`, is for people's own drawings: any pen and paper, any number of ways and
  shots. `predict` and `FewShotClassifier` take it where no network is given.
- `python -m benchmarks.omniglot report` writes this page, the cards and the names.
"""

CARD = """\
# {name}

MAML trained on {trained_on} tasks of Omniglot{also}.

```python
from pathlib import Path

from maml_l2l import FewShotClassifier

support = sorted(Path("examples/drawings/support").glob("*/*.png"))
queries = sorted(Path("examples/drawings/queries").glob("*.png"))
classifier = FewShotClassifier(checkpoint="pretrained/{name}.pth")
classifier.fit(support, [path.parent.name for path in support])
print(classifier.predict(queries))
```

## Accuracy

In % on {tasks:,} tasks of unseen characters, as many queries per class as shots, classes rotated, {steps}.
Inductive: each query is normalised by the support images alone, as `predict` does. Transductive: the queries of a task
are normalised together, as in the paper. The last column has further inner steps, with the last step sizes again.

{table}

Measure it again with `--n_way`, `--k_shot` and `--n_query` of the task, and `--normalisation support` or `batch`:

    python -m maml_l2l.eval --model pretrained/{name}.pth {options}

## Training

| | |
|---|---|
| network | `Conv4`, 64 filters, {network}; meta-learned step sizes, {order} order |
| data | Omniglot, 28x28, split `finn`, 1,100 characters to train; classes rotated{moved} |
| start | {start} |
| length | {iterations:,} meta-iterations of {meta_batch} tasks |
| chosen | after {iteration:,}, with {val_accuracy:.2f} % on {validate_tasks:,} tasks of 100 validation characters |
| time | {time} on {hardware} |
| machine | {machine} |
| commit | {commit} |
| file | {kilobytes} kB, SHA-256 `{sha}` |

The command, with configs and files as they are now:

    {command}

## Limits

- It tells apart {ways} classes or fewer, drawn as Omniglot's: thin dark strokes on light paper. Photographs are another
  matter, and so are drawings of another make: on scanned digits a nearest neighbour does as well or better
  (`python -m benchmarks.digits`). Train on pictures like your own.
- The figures hold for the inner steps and queries per class that they name.

## Licence and citation

The checkpoint has the licence of this project (MIT). Omniglot is published under the MIT licence, © 2015 Brenden Lake.

> Lake, B. M., Salakhutdinov, R. and Tenenbaum, J. B. (2015). Human-level concept learning through probabilistic program
> induction. *Science*, 350(6266), 1332-1338.

> Finn, C., Abbeel, P. and Levine, S. (2017). Model-agnostic meta-learning for fast adaptation of deep networks. *ICML*.
"""


def names(runs: list[dict]) -> dict[str, str]:
    """The file that each name stands for: in each cell, of the published networks the best on validation tasks.

    Those trained inductively have names of their own, `omniglot_5w1s_inductive`.
    """
    files = {id(run): path.name for path, measured in published_networks(runs).items() for run in measured}
    candidates = [run for run in runs if id(run) in files]
    found = {}
    for kind, inductive in (("", False), ("_inductive", True)):
        chosen = {cell: best(candidates, cell, "second", inductive) for cell in CELLS}
        found |= {f"omniglot_{cell}{kind}": files[id(run)] for cell, run in chosen.items() if run}
    return found


def model_card(path: Path, measured: list[dict], runs: list[dict]) -> str:
    """The card of the checkpoint `path`, which the runs `measured` evaluated, its training first; `runs` are all."""
    training = trained_by(measured[0], runs)
    config, (first, *others) = training["config"], [CELLS[run["cell"]] for run in measured]
    steps, task = config["algorithm"]["inner_steps"], task_of(measured[-1])
    rows = [[CELLS[run["cell"]], figure(run, "support"), figure(run), _more_steps(run)] for run in measured]
    return CARD.format(
        name=path.stem,
        trained_on=first,
        also=f"; the same weights also serve {_enumeration(others)} tasks" if others else "",
        tasks=measured[0]["evaluations"]["batch"]["tasks"],
        steps="after one inner step" if steps == 1 else f"after {steps} inner steps",
        table=common.table(["task", "inductive", "transductive", "transductive, more steps"], rows),
        options=" ".join(f"--{flag} {task[key]}" for flag, key in _FLAGS.items()),
        network=network(training),
        order=training["order"],
        moved=f", training images moved by up to {config['train']['shift']} px" * bool(config["train"].get("shift")),
        start=f"`{start(training)}`" if start(training) else "random weights",
        time=training_time(training, runs),
        hardware=hardware(training, runs),
        machine=describe(training["sessions"][-1]),
        commit=training["commit"],
        iteration=training["iteration"],
        val_accuracy=training["val_accuracy"],
        kilobytes=round(path.stat().st_size / 1000),
        sha=training["published_sha256"],
        command=training_command(training),
        ways=config["task"]["ways"],
        **{key: config["train"][key] for key in ("iterations", "meta_batch", "validate_tasks")},
    )


_FLAGS = {"n_way": "ways", "k_shot": "shots", "n_query": "queries"}  # of `python -m maml_l2l.eval`


def _more_steps(run: dict) -> str:
    """What a run scored after the most inner steps that it was evaluated with."""
    step, found = list(run["evaluations"]["batch"]["accuracy"].items())[-1]
    return f"{plus_minus(found)} ({step} steps)"


def _enumeration(items: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def readme(networks: dict[Path, list[dict]], runs: list[dict]) -> str:
    """The text of `pretrained/README.md`: a row per file."""
    rows = []
    for path, measured in networks.items():
        scores = {run["cell"]: figure(run, "support") for run in measured}
        stands_for = ", ".join(f"`{name}`" for name, file in names(runs).items() if file == path.name)
        row = [f"[{path.name}]({path.stem}.md)", CELLS[measured[0]["cell"]]]
        row += [network(measured[0]), *(scores.get(cell, "") for cell in CELLS)]
        rows.append([*row, stands_for])
    header = ["file, with its card", "trained on", "network", *CELLS.values(), "names"]
    return README_PAGE.format(first=next(iter(networks)).name, table=common.table(header, rows))


def documents(runs: list[dict]) -> dict[Path, str]:
    """The cards, the README and the table of names, as they should stand in `pretrained/`."""
    networks = published_networks(runs)
    cards = {path.with_suffix(".md"): model_card(path, measured, runs) for path, measured in networks.items()}
    folder = omniglot_runs.PRETRAINED
    table = json.dumps(names(runs), indent=2) + "\n"
    return cards | {folder / "README.md": readme(networks, runs), folder / "names.json": table}
