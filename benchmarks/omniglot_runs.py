"""The recorded runs on Omniglot: what each scored, how its network was trained, and the command that trains it.

A run is the JSON file that `python -m benchmarks.omniglot record` wrote, as a dictionary.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from maml_l2l.config import documented_keys, load_experiment, parse_experiment
from maml_l2l.experiments.run_folder import BEST

ROOT = Path(__file__).parents[1]
RESULTS, PRETRAINED = ROOT / "benchmarks" / "results" / "omniglot", ROOT / "pretrained"
CELLS = {"5w1s": "5-way 1-shot", "5w5s": "5-way 5-shot", "20w1s": "20-way 1-shot", "20w5s": "20-way 5-shot"}
PROTOCOL = "finn"  # the paper's: classes rotated in every split, as many queries per class as shots

# Keys of a config that change where and how fast a run goes, and have other values on a reader's machine.
LOCAL = (
    *("data.root", "data.source", "data.verify", "train.checkpoint_every"),
    *("algorithm.engine", "run.device", "run.threads", "run.workers", "run.compile"),
)
_STATED = ("algorithm.engine", "run.threads")  # which a training command gives all the same: its time depends on them


def task_sizes(cell: str) -> dict[str, int]:
    """The config's task of a cell: `5w1s` has `ways` 5 and `shots` and `queries` 1."""
    ways, shots = map(int, cell.removesuffix("s").split("w"))
    return {"task.ways": ways, "task.shots": shots, "task.queries": shots}


def own_cell(config: dict) -> str:
    """The cell whose tasks a config trains on: `5w1s`."""
    return f"{config['task']['ways']}w{config['task']['shots']}s"


def run_files() -> dict[Path, dict]:
    """Each recorded file with its run."""
    return {path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_seed*.json"))}


def load_runs() -> list[dict]:
    """All recorded runs, in the order of the paper's cells, second order before first, by seed and start.

    Where the network of a run was measured on tasks of other sizes `also`, each of these is a run of its own here.
    """
    found = []
    for run in run_files().values():
        found += [run, *(run | {"cell": cell} | measured for cell, measured in run.get("also", {}).items())]
    return sorted(found, key=lambda run: (list(CELLS).index(run["cell"]), run["order"] == "first", run_name(run)))


def accuracy(run: dict, normalisation: str = "batch") -> dict:
    """Mean and 95 % interval after the inner steps of the training."""
    return run["evaluations"][normalisation]["accuracy"][str(run["config"]["algorithm"]["inner_steps"])]


def figure(run: dict, normalisation: str = "batch") -> str:
    """`accuracy` as text."""
    return plus_minus(accuracy(run, normalisation))


def plus_minus(found: dict) -> str:
    """A mean with its interval, in %."""
    return f"{found['mean']:.2f} ± {found['ci95']:.2f}"


def best(runs: list[dict], cell: str, order: str, inductive: bool = False) -> dict | None:
    """The run of a cell and an order that scored best on validation tasks: test tasks choose nothing.

    inductive: among those trained inductively, which were validated so, too, or among the others.
    """
    found = [run for run in runs if (run["cell"], run["order"], trained_inductively(run)) == (cell, order, inductive)]
    return max(found, key=lambda run: run["val_accuracy"], default=None)


def trained_inductively(run: dict) -> bool:
    """Whether training and validation normalised each query by the support images alone."""
    return run["config"]["algorithm"].get("normalisation") == "support"


def start(run: dict) -> str | None:
    """The checkpoint that a run started from; None: from random weights."""
    return run["config"]["model"].get("pretrained")


def start_name(run: dict) -> str:
    """The name of the network that a run started from: that of its file, or of its run without what that came from."""
    path = Path(start(run))
    return (path.parent.name if path.name == BEST else path.stem).split("_from_")[0]


def start_run(run: dict, runs: list[dict]) -> dict | None:
    """The recorded run that a run started from, by its name or its file's SHA-256 sum; None where there is none."""
    if start(run) is None:
        return None
    path, trained = Path(start(run)), [one for one in runs if one["cell"] == own_cell(one["config"])]
    if path.name == BEST:
        return next((one for one in trained if run_name(one) == path.parent.name), None)
    found = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
    return next((one for one in trained if one["published_sha256"] == found and one["iteration"] > 0), None)


def task_of(run: dict) -> dict:
    """The task sizes that a run was measured on: `ways`, `shots` and `queries`."""
    return {key: run["evaluations"]["batch"][key] for key in ("ways", "shots", "queries")}


def trained_by(run: dict, runs: list[dict]) -> dict:
    """The run whose training made the network: that of the start where no further training bettered it."""
    before = start_run(run, runs) if run["iteration"] == 0 else None
    return trained_by(before, runs) if before else run


def trained_on(run: dict, runs: list[dict]) -> str:
    """The cell whose tasks the network was trained on."""
    return own_cell(trained_by(run, runs)["config"])


def max_pool(run: dict) -> bool:
    """Whether the network of a run halves images by max-pooling, where the paper's on Omniglot has a stride of 2."""
    return run["config"]["model"]["downsample"] == "max_pool"


def run_name(run: dict) -> str:
    """What tells a run from the others: task size, order, seed, max-pooling, transform, inductive training, start."""
    origin = f"_from_{start_name(run)}" if start(run) else ""
    kind = "_max_pool" * max_pool(run) + (f"_{transform(run)}" if transform(run) else "")
    kind += "_inductive" * trained_inductively(run)
    return f"{own_cell(run['config'])}_{run['order']}_seed{run['seed']}{kind}{origin}"


def network(run: dict) -> str:
    """How the network of a run differs from the others': `max-pooling, Meta-Curvature, trained inductively`."""
    known = {"meta_curvature": ", Meta-Curvature", "meta_sgd": ", Meta-SGD", "kronecker": ", Kronecker factors"}
    kind = ("max-pooling" if max_pool(run) else "stride") + known.get(transform(run) or "", "")
    return kind + ", trained inductively" * trained_inductively(run)


def transform(run: dict) -> str | None:
    """The learned transform of the inner gradients, `algorithm.update`, where a run has one."""
    update = run["config"]["algorithm"].get("update", "sgd")
    return None if update in ("sgd", "lslr") else update


def training_command(run: dict) -> str:
    """The command that trains the network of `run`, from the config of its cell as that is now."""
    config = f"configs/omniglot_{own_cell(run['config'])}.yaml"
    experiment, usual, settings = parse_experiment(run["config"], "the run"), load_experiment(ROOT / config), []
    any_engine = experiment.algorithm.by_any_engine()  # long trainings are compiled, by the engine that is named or not
    experiment = experiment.model_copy(update={"algorithm": any_engine})
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


def seconds_before(run: dict, runs: list[dict]) -> float:
    """How long all the trainings took that a run started from, one after another."""
    before = start_run(run, runs)
    return 0.0 if before is None else before["seconds"] + seconds_before(before, runs)


def training_time(run: dict, runs: list[dict]) -> str:
    """How long the training of a run's network took, compiling and what it started from apart."""
    run = trained_by(run, runs)
    parts = [duration(run["seconds"])]
    if run.get("compiled_before_seconds"):
        parts.append(f"{duration(run['compiled_before_seconds'])} of compiling")
    if before := start_run(run, runs):
        elsewhere = hardware(before, runs) != hardware(run, runs)
        where = f" ({hardware(before, runs)})" if elsewhere else ""
        parts.append(f"{duration(seconds_before(run, runs))} of its start{where}")
    return " + ".join(parts)


def hardware(run: dict, runs: list[dict]) -> str:
    """The processor cores or the GPU that trained the network of a run."""
    session = trained_by(run, runs)["sessions"][-1]
    if "gpu" in session:
        return session["gpu"]
    cores = session["processes"] * session["threads"]
    name = session["processor"].replace("(R)", "").removesuffix(" Processor")
    return f"{name}, {'1 core' if cores == 1 else f'{cores} cores'}"


def published_networks(runs: list[dict]) -> dict[Path, list[dict]]:
    """Each checkpoint in `pretrained/` with the runs that measured it, its training first, by its SHA-256 sum.

    Those without runs, such as the network for people's own drawings, are left out.
    """
    networks = {}
    for path in sorted(PRETRAINED.glob("*.pth")):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        measured = [run for run in runs if run["published_sha256"] == found]
        if measured:
            networks[path] = sorted(measured, key=lambda run: run["cell"] != trained_on(run, runs))
    return networks
