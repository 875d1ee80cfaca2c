"""Compiling the pieces of an engine, each once, and only where the compiled piece does what the other does."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from maml_l2l.algorithms.functional import random_state
from maml_l2l.system import distributed
from maml_l2l.system.messages import warn_user

# Of a piece's results, by their norm; bfloat16 products, which compiled code rounds elsewhere, make 0.14 of it.
_MOST_DIFFERENCE = 0.5

_log = logging.getLogger("maml_l2l")


class CompiledPieces:
    """Functions of tensors, compiled at their first call, for the shapes of that call."""

    def __init__(self) -> None:
        self._pieces: dict[str, tuple[Any, Callable[..., Any]]] = {}
        self._seconds: dict[str, float] = {}
        self._given_up = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a copy of a learner compiles its own."""
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    @property
    def compiled(self) -> list[str]:
        """The names of the pieces that run compiled."""
        return [] if self._given_up else list(self._pieces)

    def run(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """`function(*arguments)`, compiled under `name` where these are the shapes that it was compiled for."""
        shapes = _shapes(arguments)
        if not self._given_up and name not in self._pieces:
            return self._compile(name, function, arguments, shapes)
        if self._given_up or self._pieces[name][0] != shapes:
            return function(*arguments)
        return _own(self._pieces[name][1](*arguments))

    def announce(self) -> None:
        """Say which pieces were compiled since the last call, and how long it took."""
        if self._seconds:
            pieces = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self._seconds.items())
            _say(f"compiled these pieces: {pieces}")
            self._seconds.clear()

    def _compile(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], shapes: Any) -> Any:
        """What `function` gives; warn and stay uncompiled where this machine cannot compile it, or gets it wrong."""

        def piece(*arguments: Any) -> Any:
            return function(*arguments)

        if not self._pieces:
            _say("compiling first, which takes a minute or two (run.compile: false does without)")

        # TorchDynamo files what it compiled under the code object, and refuses a ninth: each learner brings its own.
        piece.__code__ = piece.__code__.replace()
        start = time.perf_counter()
        device = next(_tensors(arguments)).device
        before = random_state(device)
        expected = function(*arguments)
        try:
            if any(not torch.equal(*states) for states in zip(before, random_state(device), strict=True)):
                raise ArithmeticError("the network draws random numbers, which compiled code would draw otherwise")
            compiled = torch.compile(piece, dynamic=False, fullgraph=True, **_settings(arguments))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"torch\._inductor")  # advice to who writes kernels
                found = _own(compiled(*arguments))
                _check(found, expected)
        except Exception as error:  # the compiler's stack raises its own errors, the C++ compiler's among them
            self._given_up = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warn_user(f"going on uncompiled, because compiling failed: {reason}")
        else:
            self._pieces[name], self._seconds[name] = (shapes, compiled), time.perf_counter() - start
            return found  # a run that is resumed compiles anew, and ends bit for bit as one never stopped
        return expected


def _settings(arguments: Any) -> dict[str, Any]:
    """Of `torch.compile`."""
    if any(leaf.is_cuda for leaf in _tensors(arguments)):
        # Launching its kernels one by one would take a GPU longer than running them: CUDA graphs launch all at once.
        return {"mode": "reduce-overhead"}
    from maml_l2l.algorithms.plain_layouts import PlainLayouts  # loads the compiler, which takes seconds

    return {"options": {"post_grad_custom_pre_pass": PlainLayouts()}}


def _say(text: str) -> None:
    """Each process compiles its own, and one says so."""
    if distributed.rank() == 0:
        _log.info(text)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _shapes(arguments: tuple[Any, ...]) -> Any:
    return [(leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in tree_leaves(arguments)]


def _own(results: Any) -> Any:
    """On a GPU a copy of what a CUDA graph gave, because its next run writes to the same place."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.clone() if tensor.is_cuda else tensor, results)


def _check(found: Any, expected: Any) -> None:
    """Raise `ArithmeticError` where the compiled code computes something else, as bfloat16's does on some CPUs."""
    found, expected = (torch.cat([leaf.double().flatten() for leaf in _tensors(tree)]) for tree in (found, expected))
    difference, norm = (found - expected).norm().item(), expected.norm().item()
    if not difference <= _MOST_DIFFERENCE * norm:
        raise ArithmeticError(f"a compiled piece is off by {difference:.1e}, at a norm of {norm:.1e}")
