"""Conv4's shapes, size and normalisation policy."""

import pytest
import torch
from torch.nn import functional as F

from maml_l2l.backbones import BatchStatisticsNorm, Conv4


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
