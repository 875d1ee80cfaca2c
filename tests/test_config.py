"""What a user reads when a config is wrong, and that every shipped config is right."""

from pathlib import Path

import pytest

from maml_l2l.config import Experiment, keys_as_markdown, load_experiment, with_overrides
from maml_l2l.system.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    assert isinstance(load_experiment(path), Experiment)


def config_file(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task:\n  way: 5\n", r"experiment.yaml: unknown key `task.way` \(did you mean `task.ways`\?\)"),
        ("tasks:\n  ways: 5\n", r"unknown key `tasks` \(did you mean `task`\?\)"),
        ("train:\n  inner_lr: 1\n", r"unknown key `train.inner_lr` \(did you mean `algorithm.inner_lr`\?\)"),
        ("ways: 5\n", r"unknown key `ways` \(did you mean `task.ways`\?\)"),
        ("task:\n  ways: five\n", r"`task.ways` should be a valid integer, found 'five'"),
        ("task:\n  ways: 5.5\n", r"`task.ways` should be a valid integer, found 5.5"),
        ("data:\n  rotate: 1\n", r"`data.rotate` should be a valid boolean, found 1"),
        ("task:\n  shots: -1\n", r"`task.shots` should be greater than or equal to 1, found -1"),
        ("train:\n  iterations: 0\n", r"`train.iterations` should be greater than or equal to 1, found 0"),
        ("algorithm:\n  inner_lr: .nan\n", r"`algorithm.inner_lr` should be .*found nan"),
        ("algorithm:\n  inner_lr: .inf\n", r"`algorithm.inner_lr` should be a finite number, found inf"),
        (
            "algorithm:\n  order: third\n",
            r"`algorithm.gradient` should be 'second', 'first', 'implicit', .*, found 'third'",
        ),
        ("run:\n  device: tpu\n", r"`run.device` .*found 'tpu'"),
        (
            "algorithm:\n  engine: loop\nrun:\n  compile: true\n",
            r"experiment.yaml: `run.compile` is for `algorithm.engine: vectorized`, found engine `loop`",
        ),
        (
            "algorithm:\n  engine: loop\nrun:\n  precision: bfloat16\n",
            r"`run.precision` is for `algorithm.engine: vectorized`, found engine `loop`",
        ),
        ("run:\n  workers: -1\n", r"`run.workers` should be greater than or equal to 0, found -1"),
        ("train:\n  shift: 28\n", r"`train.shift` should be less than `data.image_size`, 28, found 28"),
        ("data:\n  image_size: 32\n", r"`data.image_size` is 28 for `data.name: omniglot`, found 32"),
        ("data:\n  name: glyphs\n  channels: 3\n", r"`data.channels` is 1 for `data.name: glyphs`, found 3"),
        (
            "data:\n  name: folder\n  ink: normalised\n  channels: 3\n",
            r"`data.channels` is 1 for `data.ink: normalised`, found 3",
        ),
        (
            "data:\n  name: folder\n  ink: normalised\n  invert: true\n",
            r"`data.invert` has no effect with `data.ink: normalised`, which finds the ink: leave it out, found True",
        ),
        (
            "data:\n  name: folder\n  ink: normalised\n  fit: pad\n",
            r"`data.fit` has no effect with `data.ink: normalised`, .* leave it out, found pad",
        ),
        ("data:\n  ink: pencil\n", r"`data.ink` should be 'finn' or 'normalised', found 'pencil'"),
        (
            "data:\n  name: folder\ntrain:\n  augment: 1\n",
            r"`train.augment` is for drawings: omniglot, glyphs, or a folder with .*, found 1.0 for `data.name: fol",
        ),
        ("train:\n  augment: 2.5\n", r"`train.augment` should be less than or equal to 2, found 2.5"),
        ("data:\n  name: folder\n  channels: 2\n", r"`data.channels` should be 1 or 3, found 2"),
        (
            "data:\n  val_fraction: 0.6\n  test_fraction: 0.4\n",
            r"`data.val_fraction` \+ `data.test_fraction` should be less than 1.*found 0.6 \+ 0.4",
        ),
        ("task: 5\n", r"`task` should be a section of keys, found 5"),
        ("- task\n", r"expected sections such as `task:` and `train:`, found list"),
        ("", r"expected sections such as `task:` and `train:`, found NoneType"),
        ("task: [unclosed\n", r"experiment.yaml is not valid YAML: .*line"),
        ("task: !!python/object/apply:os.getcwd []\n", r"is not valid YAML: could not determine a constructor"),
        ("task:\n  ways: 5\n  ways: 6\n", r"not valid YAML: the key `ways` stands there twice .*line 3, column 3"),
        ("task: {ways: 5}\ntask:\n  shots: 2\n", r"not valid YAML: the key `task` stands there twice .*line 2, column"),
        ("task: &a {ways: 5}\neval: {<<: *a}\n", r"not valid YAML: merge keys `<<` are not read .*line 2, column 8"),
        ("task:\n  ways: 0x" + "f" * 99, r"not valid YAML: the number is too large .*line 2, column 9"),
        ("task:\n  ways: " + "9" * 5000, r"not valid YAML: a value does not have the form of its type \(Exceeds the"),
        ("task:\n  ways: 2026-13-01\n", r"not valid YAML: a value does not have the form of its type \(month must be"),
        ("[" * 2000, r"not valid YAML: it is nested too deeply"),
        ("#" * 2**16 + "\n", r"experiment.yaml is larger than 65536 bytes, which no config is"),
        ("5: 6\n", r"`5` should be a name, found 5"),
        ("? [task]\n: 5\n", r"not valid YAML: .*found unhashable key"),
        ('data:\n  root: "a\\0b"\n', r"`data.root` should be a path that a file can have, found 'a\\x00b'"),
        ('data:\n  root: "\\ud800"\n', r"`data.root` should be a path that a file can have, found '\\ud800'"),
        ("run:\n  seed: 0xffffffffffffffff\n", r"`run.seed` should be less than 9223372036854775808, found 1844674407"),
        ("run:\n  device: cuda:01\n", r"`run.device` .*found 'cuda:01'"),
        ("model:\n  filters: 1000000000\n", r"`model.filters` should be less than or equal to 1024, found 1000000000"),
        ("".join(f"k{i}: 1\n" for i in range(999)), r"unknown key `k9` [^`]*; and 989 more\.$"),
    ],
)
def test_a_wrong_config_is_refused_with_key_value_and_file(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_experiment(config_file(tmp_path, text))


def test_a_billion_laughs_are_not_printed(tmp_path):
    lines = ["x0: &x0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"x{n + 1}: &x{n + 1} [{', '.join([f'*x{n}'] * 9)}]" for n in range(30)]
    lines += ["task:", "  ways: *x30"]
    with pytest.raises(UserError, match=r"and 22 more") as caught:
        load_experiment(config_file(tmp_path, "\n".join(lines)))
    assert len(str(caught.value)) < 2000
    text = "\n".join(["task:", "  ways: &x30 5"]) + "\n"  # an alias that is no bomb may stand
    assert load_experiment(config_file(tmp_path, text + "  shots: *x30\n")).task.shots == 5
    with pytest.raises(UserError, match=r"--set task.ways=5: task holds \[\[\[.*, expected a section of keys"):
        load_experiment(config_file(tmp_path, "\n".join(lines).replace("\n  ways:", "")), ["task.ways=5"])


def test_every_problem_is_named_at_once(tmp_path):
    with pytest.raises(UserError, match=r"`task.ways`.*; .*`train.meta_lr`"):
        load_experiment(config_file(tmp_path, "task:\n  ways: 1\ntrain:\n  meta_lr: -1\n"))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"cannot read the config nowhere.yaml: No such file"):
        load_experiment("nowhere.yaml")


def test_an_empty_section_means_its_defaults(tmp_path):
    assert load_experiment(config_file(tmp_path, "task:\ntrain:\n  iterations: 7\n")).task == Experiment().task


def test_unset_keys_of_the_data_become_those_of_the_data_set(tmp_path):
    drawings, pictures = Experiment().data, load_experiment(None, ["data.name=folder"]).data
    assert (drawings.image_size, drawings.channels, drawings.rotate) == (28, 1, True)
    assert (pictures.image_size, pictures.channels, pictures.rotate) == (84, 3, False)
    path = config_file(tmp_path, "data:\n  name: folder\n  image_size: 32\n  channels: 1\n  rotate: true\n")
    pictures = load_experiment(path).data
    assert (pictures.image_size, pictures.channels, pictures.rotate) == (32, 1, True)


def test_scientific_notation_without_a_dot_is_a_number(tmp_path):
    assert load_experiment(config_file(tmp_path, "train:\n  meta_lr: 3e-3\n")).train.meta_lr == 0.003


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path):
    path = config_file(tmp_path, "train:\n  iterations: 5\n")
    experiment = load_experiment(path, ["train.iterations=6", "train.iterations=7", "algorithm.inner_lr=1e-1"])
    assert (experiment.train.iterations, experiment.algorithm.inner_lr) == (7, 0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.iterations", r"--set train.iterations: expected section.key=value"),
        ("iterations=5", r"--set iterations=5: expected section.key=value"),
        ("train.iteration=5", r"unknown key `train.iteration` \(did you mean `train.iterations`\?\)"),
        ("train.iterations=many", r"`train.iterations` should be a valid integer, found 'many'"),
        ("train.iterations=[", r"'\[' is not a YAML value"),
    ],
)
def test_a_wrong_override_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        load_experiment(None, [override])


def test_typed_overrides_are_validated_and_none_keeps_the_value():
    experiment = with_overrides(Experiment(), {"task.ways": 3, "task.shots": None}, origin="the command line")
    assert (experiment.task.ways, experiment.task.shots) == (3, 1)
    with pytest.raises(UserError, match=r"the command line: `eval.tasks` should be greater"):
        with_overrides(Experiment(), {"eval.tasks": -5}, origin="the command line")


def test_an_experiment_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        Experiment().task.ways = 3


def test_the_documentation_has_every_key():
    page = ROOT / "docs" / "configuration.md"
    assert keys_as_markdown() in page.read_text(encoding="utf-8"), "run python -m maml_l2l.config"


def test_ink_is_finn_s_unless_asked_and_makes_a_folder_drawings():
    assert load_experiment(None).data.ink == "finn"
    drawings = load_experiment(None, ["data.name=folder", "data.ink=normalised", "train.augment=1"])
    assert (drawings.data.image_size, drawings.data.channels, drawings.data.rotate) == (28, 1, False)
    assert load_experiment(None, ["data.name=folder", "data.channels=1", "data.invert=true", "train.augment=0.5"])
