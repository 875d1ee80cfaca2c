"""What the page asks of a network: learn a support set once, then name queries, after every inner step."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maml_l2l.checkpoints.checkpoint import Checkpoint, load_pretrained
from maml_l2l.data.drawing_problems import drawing_problem
from maml_l2l.data.pictures import decoded_picture
from maml_l2l.page.networks import Network
from maml_l2l.page.pictures import MOST_PICTURES, SIDE, pixels_url
from maml_l2l.page.questions import Question
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.system.device import computing, find_device
from maml_l2l.system.errors import UserError

_KEPT = 16  # support sets, and checkpoints


@dataclass(frozen=True)
class _Learned:
    """A network, by its name, that has learned a support set.

    loss: of the support set after each number of inner steps.  seen: what is answered of each picture, by its digest.
    """

    network: str
    classifier: FewShotClassifier
    loss: list[float]
    seen: dict[str, dict[str, Any]]


class Answers:
    """Answers the page's questions with `networks`. One question at a time: it is for one thread."""

    def __init__(self, networks: Mapping[str, Network]):
        self._networks = networks
        self._learned: OrderedDict[str, _Learned] = OrderedDict()

    def answer(self, question: Question) -> dict[str, Any]:
        """`loss`: of the support set after 0, 1, ... inner steps, (steps + 1,). `support`, `queries`: a dictionary for
        each picture, with what the network sees (`seen`) and what is wrong with that (`problem`, or None); a query also
        has the `probabilities` of the classes after each number of inner steps, (steps + 1, classes).

        Raises `UserError` where the network or a picture does not serve.
        """
        if question.network not in self._networks:
            raise UserError("there is no such network on this page. Choose one of its list.")
        drawings = self._networks[question.network].drawings
        digests = [[hashlib.sha256(picture).hexdigest() for picture in of_class] for of_class in question.support]
        # Drawings are small work, and threads that wait for one another are slow beside a browser that draws.
        with warnings.catch_warnings(), computing(find_device(), 1 if drawings else None):
            warnings.simplefilter("ignore")  # of drawings: the answer holds what they say
            learned = self._learn(question, digests)
            queries = self._named(learned, question.queries, drawings) if question.queries else []
        support = [learned.seen[digest] for of_class in digests for digest in of_class]
        return {"loss": learned.loss, "support": support, "queries": queries}

    def _learn(self, question: Question, digests: list[list[str]]) -> _Learned:
        """The network adapted to the question's support set, which is done once for each of the last `_KEPT`."""
        key = repr((question.network, digests))
        learned = self._learned.pop(key, None) or self._newly_learned(question, digests)
        self._learned[key] = learned
        if len(self._learned) > _KEPT:
            self._learned.popitem(last=False)
        return learned

    def _newly_learned(self, question: Question, digests: list[list[str]]) -> _Learned:
        if not all(question.support):
            raise UserError("a class has no drawing. Draw one, or leave the class out.")
        pictures = [picture for of_class in question.support for picture in of_class]
        if len(pictures) > MOST_PICTURES:
            raise UserError(f"these are {len(pictures)} pictures to learn from; the page takes {MOST_PICTURES}.")
        network = self._networks[question.network]
        support = _decoded(pictures, "picture")
        labels = np.repeat(np.arange(len(digests)), [len(of_class) for of_class in digests])
        classifier = FewShotClassifier(_loaded(network.source)).fit(support, labels.tolist())
        own = _finite(classifier.predict_proba_by_step(support))[:, np.arange(len(labels)), labels]
        loss = -np.log(own.clip(np.finfo(np.float32).tiny)).mean(1)
        # A stroke changes one picture: the others were seen before.
        known = {
            digest: seen
            for one in self._learned.values()
            if one.network == question.network
            for digest, seen in one.seen.items()
        }
        wanted = dict(zip((digest for of_class in digests for digest in of_class), support, strict=True))
        new = [digest for digest in wanted if digest not in known]
        known |= dict(zip(new, _seen(classifier, [wanted[digest] for digest in new], network.drawings), strict=True))
        return _Learned(question.network, classifier, loss.tolist(), {digest: known[digest] for digest in wanted})

    @staticmethod
    def _named(learned: _Learned, pictures: Sequence[bytes], drawings: bool) -> list[dict[str, Any]]:
        queries = _decoded(pictures, "query")
        found = _finite(learned.classifier.predict_proba_by_step(queries)).swapaxes(0, 1)
        seen = _seen(learned.classifier, queries, drawings)
        return [one | {"probabilities": of_one.tolist()} for one, of_one in zip(seen, found, strict=True)]


@lru_cache(_KEPT)
def _loaded(source: str | Path) -> Checkpoint:
    return load_pretrained(source)


def _decoded(pictures: Sequence[bytes], name: str) -> list[Image.Image]:
    return [decoded_picture(picture, f"{name} {i}", SIDE**2) for i, picture in enumerate(pictures, 1)]


def _seen(classifier: FewShotClassifier, pictures: list[Image.Image], drawings: bool) -> list[dict[str, Any]]:
    """`seen` and `problem` of each picture."""
    if not pictures:
        return []
    pixels = classifier.pixels(pictures).numpy()
    return [{"seen": pixels_url(one), "problem": drawing_problem(one[0]) if drawings else None} for one in pixels]


def _finite(probabilities: Any) -> np.ndarray[Any, Any]:
    found = np.asarray(probabilities)
    if not np.isfinite(found).all():
        raise UserError("this network's inner steps diverge on these pictures. Choose another network.")
    return found
