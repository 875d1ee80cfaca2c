"""The page's server: where it listens, and until when."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from maml_l2l.page.networks import Network, find_networks
from maml_l2l.system.errors import MissingPackage, UserError
from maml_l2l.system.files import reason
from maml_l2l.system.interruption import StopRequests

try:
    import uvicorn

    from maml_l2l.page.app import page_app
    from maml_l2l.page.guard import Guard
except ImportError as error:
    package = (error.name or "").partition(".")[0]
    if package not in ("starlette", "uvicorn"):
        raise
    raise MissingPackage(f"the page needs {package}, which is not installed: pip install starlette uvicorn.") from None

_log = logging.getLogger(__name__)


def serve_page(model: str, host: str, port: int, browser: bool) -> None:
    """Serve the page until a signal comes, which raises `Stopped`.

    model: a checkpoint's path or the name of a pretrained network.  browser: open one.
    Raises `UserError` where the network, the address or the port cannot be used.
    """
    with StopRequests("the page is closed.") as requests:
        networks = find_networks(model)
        requests.at_once = False  # an exception amid the start of a thread may be lost, and the signal with it
        with listening(networks, host, port) as address:
            _log.info(f"draw at {address}  (Ctrl-C ends it)")
            if browser:
                webbrowser.open(address)
            while requests.signal_number is None:
                time.sleep(0.1)
        raise requests.stopped()


@contextmanager
def listening(networks: Mapping[str, Network], host: str, port: int) -> Iterator[str]:
    """While this context is open, serve the page; gives its address. port: 0 takes any that is free."""
    bound = _bound(host, port)
    ip, port = bound.getsockname()[:2]
    local = ipaddress.ip_address(ip).is_loopback
    token = None if local else secrets.token_urlsafe(24)
    name = f"[{host}]" if ":" in host else host
    hosts = {f"{one}:{port}".removesuffix(":80") for one in ("127.0.0.1", "localhost", "[::1]", name)}
    config = uvicorn.Config(
        Guard(page_app(networks), hosts if local else None, token),
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        limit_concurrency=100,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    # In a thread of its own uvicorn leaves the signals to this one.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        shown = socket.gethostname() if name in ("0.0.0.0", "[::]") else name
        yield f"http://{shown}:{port}/" + (f"{token}/" if token else "")
    finally:
        server.should_exit = True
        thread.join(3)
        bound.close()


def _bound(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"--port should be from 0, for any that is free, to 65535, found {port}.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise UserError(f"there is no address {host}: {reason(error)}. Leave --host out.") from None
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"cannot serve at {host}, port {port}: {what}. Give another --port.") from None
