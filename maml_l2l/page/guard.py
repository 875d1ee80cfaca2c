"""Who may use the page: the browser that was given its address, and no page from elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    # Nothing but the page's own files runs or is shown, and nobody shows the page inside of another.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware that lets pass what comes from the page itself.

    hosts: the `Host` headers that are this server's, `127.0.0.1:8400` for example; others come from a page whose name
    was made to lead here (DNS rebinding). None: any, as the token is needed.
    token: the first part of every path, where other machines reach this one.
    A request that names another origin than its host, as those from pages elsewhere do, is refused.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None, token: str | None = None):
        self._app, self._token = app, token
        self._hosts = None if hosts is None else set(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        if self._token is not None:
            _, token, *path = scope["path"].split("/", 2)
            if not path or not secrets.compare_digest(token.encode(errors="replace"), self._token.encode()):
                refusal = refusal or "the address lacks the token. Open the one that the command printed."
            scope = {**scope, "path": "/" + "".join(path)}
        app = self._app if refusal is None else JSONResponse({"error": refusal}, 403)
        await app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self._hosts is not None and host.lower() not in self._hosts:
            return "the page has another address. Open the one that the command printed."
        if headers.get("origin", f"http://{host}").lower() != f"http://{host}".lower():
            return "another page sent this request. Use the page itself."
        return None
