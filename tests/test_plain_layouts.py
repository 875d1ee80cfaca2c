"""The pass over compiled graphs: it takes transposed products the other way round, and leaves everything else."""

import torch
from torch.func import grad
from torch.fx.experimental.proxy_tensor import make_fx

from maml_l2l.algorithms.plain_layouts import PlainLayouts


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def products_of(function, *arguments):
    """The results before and after the pass."""
    graph = make_fx(function, tracing_mode="fake")(*arguments)
    before = graph(*arguments)
    PlainLayouts()(graph.graph)
    graph.graph.lint()
    graph.recompile()
    return before, graph(*arguments)


def test_a_transposed_product_becomes_a_plain_one():
    before, after = products_of(lambda a, b: torch.bmm(a, b).permute(0, 2, 1), numbers(2, 3, 4), numbers(2, 4, 5))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert not before.is_contiguous() and after.is_contiguous()


def test_a_product_that_is_used_as_it_is_stays():
    def both(a, b):
        product = torch.bmm(a, b)
        return product.permute(0, 2, 1), product

    before, after = products_of(both, numbers(2, 3, 4), numbers(2, 4, 5))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert [part.stride() for part in after] == [part.stride() for part in before]


def test_another_order_of_the_axes_stays():
    before, after = products_of(lambda a, b: torch.bmm(a, b).permute(2, 0, 1), numbers(2, 3, 4), numbers(2, 4, 5))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_compiler_takes_it_and_a_gradient_of_a_gradient_is_the_same():
    def twice(a, b):
        loss = lambda a, b: torch.bmm(a, b).sin().square().sum()  # noqa: E731
        return grad(lambda a, b: grad(loss, argnums=1)(a, b).sin().sum())(a, b)

    at = numbers(2, 3, 4), numbers(2, 4, 5)
    compiled = torch.compile(twice, fullgraph=True, options={"post_grad_custom_pre_pass": PlainLayouts()})
    torch.testing.assert_close(compiled(*at), twice(*at), rtol=1e-12, atol=1e-12)
