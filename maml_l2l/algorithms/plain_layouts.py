"""A pass over graphs that TorchInductor compiles: products of matrices in the order in which they are read."""

from __future__ import annotations

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx.node import Argument

_BMM, _PERMUTE = torch.ops.aten.bmm.default, torch.ops.aten.permute.default
_SWAP = [0, 2, 1]


class PlainLayouts(CustomGraphPass):
    """Takes a product (A B)^T of which nothing else is used as B^T A^T.

    Reverse over reverse differentiation gives such products, and code that reads them across the rows takes two to
    three times as long.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        for product in graph.find_nodes(op="call_function", target=_BMM):
            users = list(product.users)
            if users and all(user.target is _PERMUTE and list(user.args[1]) == _SWAP for user in users):
                with graph.inserting_before(product):
                    swapped = [_call(graph, _PERMUTE, factor, _SWAP) for factor in reversed(product.args)]
                    plain = _call(graph, _BMM, *swapped)
                for node in (*users, product):
                    node.replace_all_uses_with(plain)
                    graph.erase_node(node)

    def uuid(self) -> bytes:
        """What the compiler's cache knows this pass by."""
        return get_hash_for_files((__file__,))


def _call(graph: torch.fx.Graph, function: torch._ops.OpOverload, *arguments: Argument) -> torch.fx.Node:
    """A node with what the compiler knows of its result without computing it."""
    node = graph.call_function(function, arguments)
    known = (argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument for argument in arguments)
    node.meta["val"] = function(*known)
    return node
