"""`RESULTS.md`, its picture and the model cards, from the JSON files that `benchmarks.omniglot` recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common
from maml_l2l.config import documented_keys, load_experiment, parse_experiment
from maml_l2l.experiments.run_folder import BEST
from maml_l2l.system.machine import describe

ROOT = Path(__file__).parents[1]
RESULTS, PRETRAINED = ROOT / "benchmarks" / "results" / "omniglot", ROOT / "pretrained"
PUBLISHED, PICTURE = RESULTS / "published.json", RESULTS / "accuracy.png"
MISREAD = RESULTS.parent / "misread.json"
CELLS = {"5w1s": "5-way 1-shot", "5w5s": "5-way 5-shot", "20w1s": "20-way 1-shot", "20w5s": "20-way 5-shot"}
NOT_YET = "not trained yet"

# Keys of a config that change where and how fast a run goes, and have other values on a reader's machine.
LOCAL = (
    *("data.root", "data.source", "data.verify", "train.checkpoint_every"),
    *("algorithm.engine", "run.device", "run.threads", "run.workers", "run.compile"),
)
_STATED = ("algorithm.engine", "run.threads")  # which a training command gives all the same: its time depends on them

INTRODUCTION = """\
# Omniglot: the paper's table

Accuracy in % on 1,000 tasks of the 423 test characters of the split `finn`, none of which training or validation saw,
after as many inner steps as in training; as many queries a class as shots, classes rotated, queries normalised by their
own batch as in the paper; +- is the 95 % interval over the tasks. The checkpoint of each run is the best on validation
tasks; the test classes were used once for each, at the end, for the figures below. A seed is also that of the tasks.
"""

ERRORS = """\
Where the errors lie: on {tasks:,} validation tasks {model} scores {accuracy:.2f} %, and {worst_images} of
{images:,} drawings make {worst_errors} of its {errors} errors ([the drawings](benchmarks/results/misread.png),
[all figures](benchmarks/results/misread.json), by `python -m benchmarks.misread`).
"""

SETTINGS = """\
All of them: `Conv4` of 64 filters with stride 2 or, where it says so, 2x2 max-pooling instead (`model.downsample`),
Adam at `meta_lr` with cosine decay to zero. "Learned" step sizes are one for each parameter tensor, part of the
meta-learned initialisation (Antoniou et al., 2019), where the paper has one fixed number. A run starts from random
weights, or from those of another run (`model.pretrained`; the head is new for more ways), trained on the same classes;
the paper trains each cell from random weights, 60,000 meta-iterations of 32 tasks (5-way) or 16 (20-way), Adam at
1e-3. `support`: accuracy with each query normalised by the support images alone. `shift`: training images, and no
others, were moved by up to so many pixels, as Santoro et al. (2016) do; the paper does not. A run that is best at 0 is
the network that it started from: no training of its own bettered that on validation tasks. The 20-way 5-shot one of
first order with max-pooling was so trained with one inner step, and takes five here. Time: the whole training with
validations, compiling included, without that of the network that it started from; two runs of one thread shared the
machine, a core each, and, with max-pooling, the first-order runs of seed 0 and the 5-shot ones for some minutes with
one or two programs more; the runs of two processes had both cores, that of seed 0 but for some minutes of tests. The
second-order runs with max-pooling of seed 1 had a newer AMD EPYC than the others, with AVX-512; the 5-way 1-shot one
shared it with other programs. The run on a GPU had been compiled before, beside other programs, and multiplied in
TensorFloat-32.
"""

COMMANDS = """\
The command of each row, in this order, with configs and checkpoints as they are now. The 20-way 5-shot run of seed 1
was given 5,500 meta-iterations at first and, ended, extended (`--resume RUN_DIR --set train.iterations=8000`).
"""

REPRODUCE = """\
`python -m benchmarks.omniglot record runs/NAME` evaluates the run and writes its figures to
[benchmarks/results/omniglot](benchmarks/results/omniglot), unless they are there already (remove the file first);
`python -m benchmarks.omniglot report` turns these files into this page, the picture and the cards of the checkpoints in
[pretrained](pretrained). Two runs of one command agree to the bit on one machine with the same versions. Elsewhere
training amplifies how sums are rounded, and they differ as two seeds do.
"""

CARD = """\
# {title}

MAML for {cell_name} classification of handwritten characters, second order: {accuracy} % on unseen characters.

    python -m maml_l2l.eval --model pretrained/{name}.pth

## What it is

- The file: weights, step sizes, config and class split of a `Conv4` network, {kilobytes} kB. Its SHA-256 sum is
  `{sha}`.
- Data: Omniglot, 28x28, ink 1, paper 0, the split `finn`: 1,100 characters to train, 100 to validate, 423 to test, by
  name in the file. Classes are rotated by multiples of 90 degrees, in every split.{moved}
- Trained for {iterations:,} meta-iterations of {meta_batch} tasks in {time}, from {start};
  the checkpoint of meta-iteration {iteration:,} was the best on {validate_tasks:,} validation tasks ({val_accuracy:.2f}
  %{unchanged}). Machine: {machine}. Trained at commit {commit}; the
  command, with configs and checkpoints as they are now:

      {command}

## Accuracy

{tasks:,} test tasks of {cell_name} with {queries} a class, accuracy in % and its 95 % interval over the tasks after
each number of inner steps; it was trained with {inner_steps}. Under `batch` the queries of a task are normalised
together, as in the paper; under `support` each by the support images alone, which is what `predict` does. Further steps
take the last step sizes again, which were not trained for that: they gain next to nothing and may cost much.{others}

{table}

## Limits

- It tells apart {ways} classes or fewer, drawn as Omniglot's: dark strokes on light paper, 28x28 pixels after scaling.
  Photographs are another matter, and so are drawings of another make: on scanned digits enlarged from 8x8 pixels it is
  worse than nearest neighbour (`python -m benchmarks.digits`). Train on pictures like your own.
- Accuracy is stated for the inner steps above, with the step sizes of the file. More queries a class score otherwise
  under `batch`.

## Licence and citation

The checkpoint has the licence of this project (MIT). Omniglot is published under the MIT licence,
(c) 2015 Brenden Lake; cite

> Lake, B. M., Salakhutdinov, R. and Tenenbaum, J. B. (2015). Human-level concept learning through probabilistic program
> induction. *Science*, 350(6266), 1332-1338.

> Finn, C., Abbeel, P. and Levine, S. (2017). Model-agnostic meta-learning for fast adaptation of deep networks. *ICML*.
"""


def load_results() -> list[dict]:
    """All recorded runs, in the order of the paper's cells, second order before first, by seed and start."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*_seed*.json")]
    return sorted(found, key=lambda run: (list(CELLS).index(run["cell"]), run["order"] == "first", _origin(run)))


def figure(run: dict, normalisation: str = "batch") -> str:
    """Accuracy and interval of a run after the inner steps of its training."""
    return _ours(_accuracy(run, normalisation))


def _accuracy(run: dict, normalisation: str = "batch") -> dict:
    return run["evaluations"][normalisation]["accuracy"][str(run["config"]["algorithm"]["inner_steps"])]


def _ours(accuracy: dict) -> str:
    return f"{accuracy['mean']:.2f} +- {accuracy['ci95']:.2f}"


def _published(accuracy: dict | None) -> str:
    """As many digits as were published."""
    if accuracy is None:
        return ""
    return f"{accuracy['mean']}" + (f" +- {accuracy['ci95']}" if "ci95" in accuracy else "")


def _start(run: dict) -> str | None:
    """The checkpoint that a run started from; None: from random weights."""
    return run["config"]["model"].get("pretrained")


def _start_name(run: dict) -> str:
    """The name of the network that a run started from: that of its file, or of the run folder that it lies in."""
    path = Path(_start(run))
    return path.parent.name if path.name == BEST else path.stem


def _max_pool(run: dict) -> bool:
    """Whether the network of a run halves images by max-pooling, where the paper's on Omniglot has a stride of 2."""
    return run["config"]["model"]["downsample"] == "max_pool"


def _origin(run: dict) -> str:
    """The seed of a run, the network that it started from, and max-pooling."""
    parts = [f"seed {run['seed']}"]
    if _start(run):
        parts.append(f"from {_start_name(run).removeprefix('omniglot_').split('_')[0]}")
    return ", ".join(parts + ["max-pooling"] * _max_pool(run))


def run_name(run: dict) -> str:
    """What tells a run from the others: task size, order, seed, start and max-pooling."""
    start = f"_from_{_start_name(run)}" if _start(run) else ""
    return f"{run['cell']}_{run['order']}_seed{run['seed']}{start}{'_max_pool' * _max_pool(run)}"


def training_command(run: dict) -> str:
    """The command that trains the network of `run`, from the config of its cell as that is now."""
    config = f"configs/omniglot_{run['cell']}.yaml"
    experiment, usual, settings = parse_experiment(run["config"], "the run"), load_experiment(ROOT / config), []
    for section, name, _ in documented_keys():
        found, expected = (getattr(getattr(values, section), name) for values in (experiment, usual))
        key = f"{section}.{name}"
        if found != expected and (key not in LOCAL or key in _STATED):
            settings.append(f" {key}={found if isinstance(found, str) else json.dumps(found)}")
    processes = run["sessions"][-1]["processes"]
    launcher = "python" if processes == 1 else f"torchrun --nproc_per_node={processes}"
    command = f"{launcher} -m maml_l2l.train --config {config} --run_dir runs/{run_name(run)}"
    return command + (f" --set{''.join(settings)}" if settings else "")


def duration(seconds: float) -> str:
    """Hours and minutes in words, or seconds where they are few."""
    if seconds < 300:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _time(run: dict) -> str:
    """The time of a training, and that of compiling where it had been compiled before."""
    before = run.get("compiled_before_seconds")
    return duration(run["seconds"]) + (f" and {duration(before)} of compiling" if before else "")


def trained(run: dict) -> str:
    """How long it took to train the weights of a run, or whose they are where no training of its own bettered them."""
    return f"no further than `{_start_name(run)}.pth`" if run["iteration"] == 0 else effort(run)


def effort(run: dict) -> str:
    """How long a run took, and on how many cores or what GPU."""
    session = run["sessions"][-1]
    if "gpu" in session:
        return f"{_time(run)} on one {session['gpu']}"
    cores = session["processes"] * session["threads"]
    return f"{_time(run)} on {'one core' if cores == 1 else f'{cores} cores'}"


def _comparison(runs: list[dict], published: list[dict], order: str) -> str:
    """The paper's table for one order: what others published, and our runs."""
    others = [one for one in published if one["order"] == order]
    rows = []
    for cell, name in CELLS.items():
        ours = [run for run in runs if (run["cell"], run["order"]) == (cell, order)]
        figures = ", ".join(f"{figure(run)} ({_origin(run)})" for run in ours)
        rows.append([name, *(_published(one["accuracy"].get(cell)) for one in others), figures or NOT_YET])
    return common.table(["task", *(one["name"] for one in others), "maml_l2l"], rows)


def _runs(runs: list[dict]) -> str:
    """How each run was trained, and its accuracy under the other reading of normalisation."""
    header = ["run", "`support`", "meta-iterations x tasks", "`meta_lr`", "`shift`", "best at", "inner steps"]
    header += ["step sizes", "time", "machine"]
    rows = []
    for run in runs:
        algorithm, train = run["config"]["algorithm"], run["config"]["train"]
        rows.append(
            [
                f"{run['cell']}, {run['order']} order, {_origin(run)}",
                figure(run, "support"),
                f"{train['iterations']:,} x {train['meta_batch']}",
                train["meta_lr"],
                train.get("shift", 0),
                f"{run['iteration']:,}",
                algorithm["inner_steps"],
                "learned" if algorithm["learn_inner_lr"] else algorithm["inner_lr"],
                _time(run),
                describe(run["sessions"][-1]),
            ]
        )
    return common.table(header, rows)


def results_markdown(runs: list[dict], published: list[dict]) -> str:
    """The text of `RESULTS.md`."""
    sources = "\n".join(f"- {one['name']}: {one['source']}." for one in published)
    commands = "\n".join(f"    {training_command(run)}  # commit {run['commit']}" for run in runs)
    return "\n".join(
        [
            INTRODUCTION,
            f"## Second order\n\n{_comparison(runs, published, 'second')}\n",
            f"## First order\n\n{_comparison(runs, published, 'first')}\n",
            f"![accuracy of every run beside the published ones]({PICTURE.relative_to(ROOT)})\n",
            f"Published figures:\n\n{sources}\n",
            ERRORS.format(**json.loads(MISREAD.read_text())),
            f"## The runs\n\n{SETTINGS}\n{_runs(runs)}\n",
            f"{COMMANDS}\n{commands}\n",
            REPRODUCE,
        ]
    )


def model_card(run: dict, runs: Sequence[dict] = ()) -> str:
    """The card of the checkpoint that `run` published; `runs` are all, some perhaps of the same task size."""
    config = run["config"]
    train, task = config["train"], config["task"]
    batch, support = (run["evaluations"][name]["accuracy"] for name in ("batch", "support"))
    rows = [[step, _ours(batch[step]), _ours(support[step])] for step in batch]
    name = f"omniglot_{run['cell']}"
    alike = [one for one in runs if one is not run and (one["cell"], one["order"]) == (run["cell"], run["order"])]
    others = ", ".join(f"{figure(one)} ({_origin(one)})" for one in alike)
    return CARD.format(
        title=name,
        name=name,
        cell_name=CELLS[run["cell"]],
        accuracy=figure(run),
        kilobytes=round((PRETRAINED / f"{name}.pth").stat().st_size / 1000),
        sha=run["published_sha256"],
        command=training_command(run),
        commit=run["commit"],
        time=effort(run),
        start=f"`{_start(run)}`" if _start(run) else "random weights",
        moved=f" Training images were moved by up to {train['shift']} px." if train.get("shift") else "",
        machine=describe(run["sessions"][-1]),
        iteration=run["iteration"],
        val_accuracy=run["val_accuracy"],
        unchanged="; these are the weights that it started from" if run["iteration"] == 0 else "",
        tasks=run["evaluations"]["batch"]["tasks"],
        queries="1 query" if task["queries"] == 1 else f"{task['queries']} queries",
        inner_steps=config["algorithm"]["inner_steps"],
        others=f"\nOther runs of this task size: {others}; this one is {_origin(run)}." if others else "",
        table=common.table(["inner steps", "`batch`", "`support`"], rows),
        ways=task["ways"],
        **{key: train[key] for key in ("iterations", "meta_batch", "validate_tasks")},
    )


def plot(runs: list[dict], published: list[dict], path: Path) -> None:
    """A panel for each task size: the published accuracies and ours, with 95 % intervals where they are known."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.6, 6.4), layout="constrained")
    for axes, (cell, name) in zip(drawing.subplots(2, 2).flat, CELLS.items(), strict=True):
        points = [(one["name"], one["accuracy"][cell], "C7") for one in published if cell in one["accuracy"]]
        for run in runs:
            if run["cell"] == cell:
                color = "C0" if run["order"] == "second" else "C1"
                points.append((f"{run['order']} order, {_origin(run)}", _accuracy(run), color))
        for place, (_, accuracy, color) in enumerate(points):
            options = {"fmt": "o", "capsize": 3, "markersize": 4, "color": color}
            axes.errorbar(accuracy["mean"], -place, xerr=accuracy.get("ci95"), **options)
        axes.set_yticks([-place for place in range(len(points))], [label for label, _, _ in points], fontsize=8)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    drawing.supxlabel("accuracy on test characters (%), 95 % interval over tasks; grey: published, colour: maml_l2l")
    drawing.savefig(path, dpi=150)


def published_checkpoints(runs: list[dict]) -> dict[Path, dict]:
    """Each checkpoint in `pretrained/` with the run that it is of, found by its SHA-256 sum."""
    runs_by_sum = {run["published_sha256"]: run for run in runs}
    sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(PRETRAINED.glob("*.pth"))}
    return {path: runs_by_sum[found] for path, found in sums.items()}


def documents() -> dict[Path, str]:
    """`RESULTS.md` and the model cards, as they should stand in the repository."""
    runs, published = load_results(), json.loads(PUBLISHED.read_text())
    cards = {path.with_suffix(".md"): model_card(run, runs) for path, run in published_checkpoints(runs).items()}
    return {ROOT / "RESULTS.md": results_markdown(runs, published)} | cards


def write() -> None:
    """Write `documents()` and the picture."""
    for path, text in documents().items():
        path.write_text(text)
    plot(load_results(), json.loads(PUBLISHED.read_text()), PICTURE)
