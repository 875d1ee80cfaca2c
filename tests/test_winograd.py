"""Winograd's convolution against PyTorch's, in both directions of differentiation and twice."""

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from maml_l2l.backbones import Conv4, winograd


def numbers(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def by_torch(x, kernels):
    """x: (T, n, H, W, C), kernels: (T, 3, 3, C, F)."""
    each = vmap(lambda x, kernels: F.conv2d(x, kernels, padding=1))
    return each(x.permute(0, 1, 4, 2, 3), kernels.permute(0, 4, 3, 1, 2)).permute(0, 1, 3, 4, 2)


def curved(convolve):
    """A loss with a third derivative, so that no derivative asked for below is constant."""
    return lambda x, kernels: convolve(x, kernels).sin().square().sum()


@pytest.mark.parametrize("height, width", [(2, 2), (4, 6), (14, 14), (7, 7), (5, 8), (4, 3)])
def test_equals_pytorch(height, width):
    x, kernels = numbers(3, 2, height, width, 5), numbers(3, 3, 3, 5, 4)
    torch.testing.assert_close(winograd.convolve(x, kernels), by_torch(x, kernels), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("side", [4, 5])
def test_derivatives_equal_pytorchs(side):
    at = numbers(2, 2, side, side, 3), numbers(2, 3, 3, 3, 2)
    along = at[0].cos(), at[1].sin() / 7
    for index in (0, 1):
        found, expected = (jvp(grad(curved(f), argnums=index), at, along) for f in (winograd.convolve, by_torch))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def of_gradient(f):
        return lambda x, kernels: grad(curved(f))(x, kernels).sin().sum()

    for index in (0, 1):
        found, expected = (grad(of_gradient(f), argnums=index)(*at) for f in (winograd.convolve, by_torch))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_float32_rounds_little():
    x, kernels = numbers(2, 3, 14, 14, 64), numbers(2, 3, 3, 64, 64)
    exact, found = by_torch(x, kernels), winograd.convolve(x.float(), kernels.float())
    assert (found - exact).norm() < 2e-6 * exact.norm()


def test_products_in_bfloat16_lose_little_more_than_those_of_a_plain_convolution():
    def rounded(a, b):
        return torch.bmm(a.bfloat16(), b.bfloat16()).to(a.dtype)

    x, kernels = numbers(2, 3, 14, 14, 64), numbers(2, 3, 3, 64, 64)
    exact = by_torch(x, kernels)
    plain = by_torch(x.bfloat16().double(), kernels.bfloat16().double()).bfloat16()
    found = winograd.convolve(x, kernels, rounded)
    assert 0.001 < (found - exact).norm() / exact.norm() < 2 * (plain - exact).norm() / exact.norm()


@pytest.mark.parametrize("side, taken", [(28, 2), (20, 2), (16, 2), (7, 0)])
def test_conv4_takes_it_for_sides_of_four_and_more_and_many_channels(side, taken, monkeypatch):
    """28: 28 (1 channel), 14, 7, 3.  20: 20 (1 channel), 10, 5, 2.  16: 16 (1 channel), 8, 4, 2.  7: 7, 3, 1, 1."""
    calls, convolve = [], winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *arguments: calls.append(1) or convolve(*arguments))
    network = Conv4(5, filters=16, downsample="max_pool").double()
    shared = network.task_parameters(dict(network.named_parameters()))
    weights = {name: value[None] for name, value in shared.items()}
    images = numbers(1, 4, 1, side, side)
    torch.testing.assert_close(network.forward_tasks(weights, images)[0], network(images[0]), rtol=1e-9, atol=1e-9)
    assert len(calls) == taken
