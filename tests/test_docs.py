"""What the pages say is so: links lead somewhere, commands are taken by their parsers, examples run."""

import argparse
import copy
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from maml_l2l import TaskBatch, VectorizedMAML, load_experiment
from maml_l2l.backbones import Conv4
from maml_l2l.pretrained import files_of
from maml_l2l.system.learn2learn_import import learn2learn
from tests.commands import ROOT, run

TOPS = ("docs", "pretrained", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(page for top in TOPS for page in (ROOT / top).rglob("*.md"))])
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OUR_FOLDERS = ("configs", "pretrained", "examples", "benchmarks", "docs")


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return [block for found, block in FENCED.findall(text_of(page)) if found == language]


def anchors(page):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    prose = re.sub(r"`[^`]*`", "", FENCED.sub("", text_of(page)))
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose)


def broken_links(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page):
    assert list(broken_links(page)) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n[x](none.md) [y](#a-b-c) [z](#d) [w](https://a.b)\n```sh\n# [no](link.md)\n```\n")
    assert list(broken_links(page)) == ["none.md", "#d"]


def test_the_readme_is_short_and_lists_every_page():
    assert len(README.splitlines()) <= 150
    listed = {(ROOT / link.partition("#")[0]).name for link in links(ROOT / "README.md")}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed


def commands(page):
    """(module, arguments) of every command of ours that a page shows, in blocks and within sentences."""
    text = text_of(page).replace("\\|", "|")
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCED.sub("", text))
    lines = [line for _, block in FENCED.findall(text) for line in block.splitlines()]
    lines += re.findall(r"^(?: {4}|\t)(.*)$", FENCED.sub("", text), re.MULTILINE)
    for shown in [*(" ".join(span.split()) for span in spans), *lines]:
        for module, arguments in re.findall(r"-m ((?:maml_l2l|benchmarks)\.\w+)((?: [^&#]*)?)", shown):
            yield module, arguments.strip(), shown


# The changelog tells of commands as they were.
SHOWING = [page for page in PAGES if page.name != "CHANGELOG.md"]
COMMANDS = sorted({command[:2] for page in SHOWING for command in commands(page) if not command[2].startswith("$ ")})


class ParsedError(Exception):
    """Ends a command where its work would begin."""


def parsed(monkeypatch, module, arguments):
    """The options that the real parser of `module` makes of `arguments`; `SystemExit` where it refuses them."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(parser, *args, **options):
        raise ParsedError(real(parser, *args, **options))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [module, *shlex.split(arguments)])
    with pytest.raises(ParsedError) as found:
        importlib.import_module(module).main()
    return found.value.args[0]


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_every_command_is_taken_by_its_parser(monkeypatch, module, arguments):
    assert importlib.util.find_spec(module)
    if not arguments:  # a program is named, perhaps without what it needs
        return
    options = parsed(monkeypatch, module, arguments)
    for word in re.split(r"[\s=]", arguments):
        if word.split("/")[0] in OUR_FOLDERS:
            assert (ROOT / word).exists(), f"there is no {word}"
    model = getattr(options, "model", None)
    if isinstance(model, str) and model.islower():  # CHECKPOINT is for the reader to fill in
        files_of(model)
    config = getattr(options, "config", None)
    load_experiment(ROOT / config if config and (ROOT / config).exists() else None, getattr(options, "set", []))


def test_the_pages_show_commands_of_every_kind():
    modules = {module for module, arguments in COMMANDS if arguments}
    assert {f"maml_l2l.{name}" for name in ("train", "eval", "predict", "draw", "calibrate", "download")} <= modules
    assert len([1 for module, arguments in COMMANDS if arguments]) > 30


def test_a_refused_command_is_found(monkeypatch):
    with pytest.raises(SystemExit):
        parsed(monkeypatch, "maml_l2l.train", "--confg x.yaml")


def test_the_mistake_that_a_page_shows_reads_as_it_is_shown():
    text = text_of(ROOT / "docs" / "troubleshooting.md")
    command, message = re.search(r"^    \$ python -m (.*)\n    (error: .*)$", text, re.MULTILINE).groups()
    done = run(*shlex.split(command))
    assert (done.returncode, done.stderr.strip()) == (2, message)


@pytest.mark.parametrize("page", ["README.md", "docs/predict.md"])
def test_the_sample_drawings_are_named_rightly_by_the_command_and_the_example_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (example,) = (block for block in blocks(ROOT / page, "python") if "FewShotClassifier" in block)
    found: dict = {}
    exec(example, found)
    queries = sorted(Path("examples/drawings/queries").glob("*.png"))
    truth = [path.stem.rstrip("123") for path in queries]
    assert found["classifier"].predict(queries).tolist() == truth
    assert sorted(set(truth)) == found["classifier"].classes_.tolist()

    (command,) = (arguments for module, arguments, _ in commands(ROOT / page) if "examples/drawings" in arguments)
    done = run("maml_l2l.predict", *shlex.split(command.replace("names.png", str(tmp_path / "names.png"))))
    named = [line.split(" %")[0].rpartition(" ")[0] for line in done.stdout.splitlines()]
    assert named == [f"{path}: {name}" for path, name in zip(queries, truth, strict=True)], done.stderr
    assert (tmp_path / "names.png").stat().st_size > 10_000
    shown = re.findall(r"^    (examples/drawings/.*?) [\d.]+ %", text_of(ROOT / page), re.MULTILINE)
    assert shown and set(shown) <= set(named)


def test_the_checkpoint_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (example,) = blocks(ROOT / "docs" / "checkpoints.md", "python")
    found: dict = {}
    exec(example, found)
    assert found["network"](torch.zeros(2, 1, 28, 28)).shape == (2, 5)


def test_the_loop_of_the_readme_has_the_same_gradient_before_and_after():
    (diff,) = blocks(ROOT / "README.md", "diff")
    torch.manual_seed(0)
    network = Conv4(ways=5, channels=1, filters=4, downsample="stride").double()
    labels = torch.arange(5).repeat(3, 1)
    batches = [(torch.rand(3, 5, 1, 28, 28).double(), labels, torch.rand(3, 5, 1, 28, 28).double(), labels)]
    gradients = []
    for side in "-+":
        code = "\n".join(line[1:] for line in diff.splitlines() if line[0] in (" ", side))
        ours = copy.deepcopy(network)
        names = {"network": ours, "batches": batches, "torch": torch, "F": F}
        exec(code, names | {"learn2learn": learn2learn, "VectorizedMAML": VectorizedMAML, "TaskBatch": TaskBatch})
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in ours.parameters()]))
    assert gradients[0].norm() > 0.01
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
