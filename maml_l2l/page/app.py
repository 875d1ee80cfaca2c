"""What the server answers: the page's own files, and the page's questions in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maml_l2l.page.learning import Answers
from maml_l2l.page.networks import Network
from maml_l2l.page.pictures import MOST_PICTURES, pictures_in_zip, small_picture, zip_of_classes
from maml_l2l.page.questions import MOST_CLASSES, MOST_QUERIES, Question, SupportSet, parsed
from maml_l2l.page.samples import sample_files
from maml_l2l.system.errors import UserError, printable

MOST_BYTES = 2**25  # of a request
_SLOWEST = 20.0  # seconds that a request may take to arrive, or to wait for others
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_Handler = Callable[[Request], Awaitable[Response]]


def page_app(networks: Mapping[str, Network]) -> Starlette:
    """The application, without its guard. networks: those that the page offers, the first one chosen."""
    folder = Path(__file__).parent / "static"
    files = [Route(path, _file((folder / name).read_bytes(), kind)) for path, (name, kind) in _FILES.items()]
    most = {"classes": MOST_CLASSES, "pictures": MOST_PICTURES, "queries": MOST_QUERIES}
    start = {"networks": {name: _facts(network) for name, network in networks.items()}, "most": most} | _samples()

    async def first(request: Request) -> Response:
        return JSONResponse(start)

    return Starlette(
        routes=[
            *files,
            Route("/api/start", first),
            Route("/api/answer", _answering(Answers(networks)), methods=["POST"]),
            Route("/api/picture", _picture, methods=["POST"]),
            Route("/api/zip", _zip, methods=["POST"]),
            Route("/api/unzip", _unzip, methods=["POST"]),
        ],
        exception_handlers={UserError: _mistake, HTTPException: _mistake, ClientDisconnect: _mistake},
    )


def _facts(network: Network) -> dict[str, Any]:
    return {key: value for key, value in asdict(network).items() if key != "source"}


def _samples() -> dict[str, Any]:
    """`support` and `queries`: the sample drawings, each with its class or name."""
    support, queries = sample_files()
    return {
        "support": [
            {"path": f"{path.parent.name}/{path.name}", "picture": small_picture(path.read_bytes(), path.name)}
            for path in support
        ],
        "queries": [{"path": path.name, "picture": small_picture(path.read_bytes(), path.name)} for path in queries],
    }


def _file(content: bytes, kind: str) -> _Handler:
    async def handler(request: Request) -> Response:
        return Response(content, media_type=kind)

    return handler


def _answering(answers: Answers) -> _Handler:
    # One thread: PyTorch uses all cores for one question, and keeps its own threads for each thread that asks.
    thread, turn = ThreadPoolExecutor(1, "answers"), asyncio.Lock()

    async def handler(request: Request) -> Response:
        question = parsed(Question, await _body(request, "application/json"))
        try:
            await asyncio.wait_for(turn.acquire(), _SLOWEST)
        except asyncio.TimeoutError:
            raise HTTPException(503, "others are asking at the moment. Try again.") from None
        try:
            if await request.is_disconnected():  # a later question has taken the place of this one
                raise ClientDisconnect
            found = await asyncio.get_running_loop().run_in_executor(thread, answers.answer, question)
        finally:
            turn.release()
        return JSONResponse(found)

    return handler


async def _picture(request: Request) -> Response:
    content, name = await _body(request, "application/octet-stream"), request.query_params.get("name", "file")[:200]
    return JSONResponse({"picture": await run_in_threadpool(small_picture, content, name)})


async def _zip(request: Request) -> Response:
    classes = parsed(SupportSet, await _body(request, "application/json")).classes
    names, pictures = [one.name for one in classes], [one.pictures for one in classes]
    return Response(await run_in_threadpool(zip_of_classes, names, pictures), media_type="application/zip")


async def _unzip(request: Request) -> Response:
    content = await _body(request, "application/zip")
    return JSONResponse({"files": await run_in_threadpool(pictures_in_zip, content)})


async def _body(request: Request, kind: str) -> bytes:
    """The request's content, which must be of that media type: pages elsewhere may not send these without asking."""
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != kind:
        raise HTTPException(415, f"expected a request of type {kind}. Use the page itself.")

    async def received() -> bytes:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MOST_BYTES:
                raise HTTPException(413, f"this is more than {MOST_BYTES // 2**20} MiB. Use fewer or smaller pictures.")
        return bytes(content)

    try:
        return await asyncio.wait_for(received(), _SLOWEST)
    except asyncio.TimeoutError:
        raise HTTPException(408, "the request took too long to arrive. Try again.") from None


async def _mistake(request: Request, error: Exception) -> Response:
    """One sentence, as JSON."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # nobody is there to read it
    return JSONResponse({"error": printable(str(error))}, 422)
