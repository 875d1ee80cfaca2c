"""The built-in backbones: shapes, sizes, peers and normalisation policy."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maml_l2l.backbones import MLP, BatchStatisticsNorm, Conv4, ResNet12, first_images_normalise


def test_has_the_paper_s_size():
    assert sum(parameter.numel() for parameter in Conv4(5).parameters()) == 112_261


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 84), (3, 17), (1, 1)])
def test_takes_any_image_size_and_channel_count(downsample, channels, side):
    net = Conv4(ways=7, channels=channels, filters=8, downsample=downsample)
    assert net(torch.rand(4, channels, side, side)).shape == (4, 7)


def test_halves_the_image_four_times():
    sizes = []
    net = Conv4(5)
    for norm in net.norms:
        norm.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    net(torch.rand(2, 1, 28, 28))
    assert sizes == [14, 7, 4, 2]


def test_normalisation_equals_torch_s_batch_norm():
    torch.manual_seed(0)
    norm = BatchStatisticsNorm(3).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(x, statistics_from=5), expected)


def test_keeps_no_running_statistics():
    assert not list(Conv4(5).buffers())
    net = Conv4(5)
    x = torch.rand(6, 1, 28, 28)
    torch.testing.assert_close(net.train()(x), net.eval()(x))


def test_with_statistics_from_the_support_a_query_does_not_depend_on_other_queries():
    torch.manual_seed(0)
    net = Conv4(5).double()
    support, queries = torch.rand(5, 1, 28, 28).double(), torch.rand(3, 1, 28, 28).double()
    together = net(torch.cat([support, queries]), statistics_from=5)[5:]
    alone = torch.cat([net(torch.cat([support, query[None]]), statistics_from=5)[5:] for query in queries])
    torch.testing.assert_close(together, alone)
    batched = net(queries)
    assert not torch.allclose(batched[:1], net(queries[:2])[:1]), "batch statistics should depend on the other queries"


def test_resnet12_is_the_one_of_metaoptnet():
    """learn2learn's port of the authors' code, without DropBlock, with the same weights, on the paper's image size."""
    from learn2learn.vision.models import ResNet12 as Theirs

    torch.manual_seed(0)
    ours, theirs = ResNet12(ways=5), Theirs(5, dropblock_dropout=0.0)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    for index, block in enumerate(ours.blocks, start=1):
        (their_block,) = getattr(theirs.features, f"layer{index}")
        pairs = zip(block.convolutions, block.norms, (1, 2, 3), strict=True)
        for convolution, norm, number in pairs:
            getattr(their_block, f"conv{number}").load_state_dict(convolution.state_dict())
            getattr(their_block, f"bn{number}").load_state_dict(norm.state_dict(), strict=False)
        their_block.downsample[0].load_state_dict(block.shortcut.state_dict())
        their_block.downsample[1].load_state_dict(block.shortcut_norm.state_dict(), strict=False)
    theirs.classifier.load_state_dict(ours.head.state_dict())
    images = torch.rand(2, 3, 84, 84)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 17), (1, 2)])
def test_resnet12_takes_any_image_size_and_channel_count(channels, side):
    assert ResNet12(ways=7, channels=channels, filters=2)(torch.rand(4, channels, side, side)).shape == (4, 7)


def test_mlp_has_the_paper_s_layers():
    sizes = [784, 256, 128, 64, 64, 5]
    linear = sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))
    assert sum(parameter.numel() for parameter in MLP(5).parameters()) == linear + 2 * sum(sizes[1:5])
    assert MLP(3, channels=3, image_size=8)(torch.rand(4, 3, 8, 8)).shape == (4, 3)


def grouped(ways):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12**2, ways))


NETWORKS = {
    "conv4": lambda: Conv4(5, filters=4),
    "resnet12": lambda: ResNet12(5, channels=1, filters=2),
    "mlp": lambda: MLP(5, image_size=14),
    "groups": lambda: grouped(5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_normalised_by_the_first_images_a_query_does_not_depend_on_other_queries(name):
    torch.manual_seed(0)
    net = NETWORKS[name]().double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    support, queries = torch.rand(5, 1, 14, 14).double(), torch.rand(3, 1, 14, 14).double()
    as_always = net(torch.cat([support, queries]))
    with first_images_normalise(net, 5, 8):
        together = net(torch.cat([support, queries]))
    with first_images_normalise(net, 5, 6):
        alone = [net(torch.cat([support, query[None]]))[5] for query in queries]
    torch.testing.assert_close(together[5:], torch.stack(alone))
    torch.testing.assert_close(together[:5], net(support))
    with first_images_normalise(net, 8, 8):
        torch.testing.assert_close(net(torch.cat([support, queries])), as_always)
    assert torch.equal(net(torch.cat([support, queries])), as_always), "the hooks should be gone"
    assert torch.allclose(together, as_always) == (name == "groups")


def test_conv4_s_own_argument_and_the_first_images_say_the_same():
    net = Conv4(5, filters=4).double()
    images = torch.rand(7, 1, 14, 14).double()
    with first_images_normalise(net, 5, 7):
        torch.testing.assert_close(net(images), net(images, statistics_from=5))
