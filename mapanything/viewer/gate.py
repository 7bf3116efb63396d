"""The door in front of viser: only pages that this server has sent reach it.

Any page in the same browser could connect to a server on localhost, and viser asks nobody where he comes from. So viser
listens on an address of this machine that nobody can guess, and what arrives at the address that was asked for is looked at
here first: one request a connection, then bytes to and fro. Headers: RFC 9112, section 5; websockets: RFC 6455, section 4.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import secrets
import socket
import threading
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from mapanything.errors import InputError

HEAD_S = 10.0  # a request's head comes at once or not at all
MOST_CLIENTS = 16  # each has a session, with the frame that it shows
CHUNK = 1 << 18  # bytes
REFUSED = "This page is not the viewer's own; open the address that it printed.\n"


class Gate:
    """Passes on to `target` what arrives at the sockets and may, in a thread of its own, until it is closed.

    Args:
        local_only: the sockets are reached from this machine alone. names: that the viewer may be asked under, besides.
    """

    def __init__(
        self, sockets: list[socket.socket], target: tuple[str, int], local_only: bool, names: Collection[str] = ()
    ) -> None:
        self._sockets, self._target, self._local_only, self._names = sockets, target, local_only, names
        self._clients = 0
        self._loop, self._closed = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="viewer-gate", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends all connections."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # whose end cancels what is going on
            runner.run(self._serve())

    async def _serve(self) -> None:
        servers = [await asyncio.start_server(self._connected, sock=socket, limit=CHUNK) for socket in self._sockets]
        await self._closed.wait()
        for server in servers:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, asyncio.CancelledError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_S)
            headers = parse_head(head)
            upgrade = headers is not None and headers.get("Upgrade", "").lower() == "websocket"
            if headers is None or {"Content-Length", "Transfer-Encoding"} & headers.keys():
                await _answer(writer, "400 Bad Request", "This is no request of a browser for a page.\n")
            elif not (may_connect if upgrade else may_load)(headers, self._local_only, self._names):
                await _answer(writer, "403 Forbidden", REFUSED)
            elif upgrade and self._clients >= MOST_CLIENTS:
                await _answer(writer, "503 Service Unavailable", f"{MOST_CLIENTS} pages show the viewer already; close one.\n")
            else:
                self._clients += upgrade
                try:
                    await self._pass_on(head, reader if upgrade else None, writer)
                finally:
                    self._clients -= upgrade
        with contextlib.suppress(OSError):
            writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader | None, writer: asyncio.StreamWriter) -> None:
        """The request and its answer; from a websocket (`reader`) all that follows too, from others nothing unseen."""
        answer, forward = await asyncio.open_connection(*self._target, limit=CHUNK)
        forward.write(head)
        ways = [_copy(answer, writer)] + ([_copy(reader, forward)] if reader is not None else [])
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)  # one end has closed: so has the other
        finally:
            for task in tasks:
                task.cancel()
            forward.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()


async def _answer(writer: asyncio.StreamWriter, status: str, text: str) -> None:
    length = len(text.encode())
    writer.write(
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n{text}".encode()
    )
    await writer.drain()


def parse_head(head: bytes) -> dict[str, str] | None:
    """The headers of a request, names as in `Content-Length`; None: malformed, or one that decides here is there twice."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:-2]:
        name, colon, value = line.partition(":")
        name = name.title()
        if not colon or not name or name.strip() != name or any(ord(c) < 32 and c != "\t" for c in line):
            return None
        if name in headers and name in ("Host", "Origin", "Upgrade"):
            return None
        headers[name] = value.strip(" \t")
    return headers


def may_connect(headers: Mapping[str, str], local_only: bool, names: Collection[str] = ()) -> bool:
    """True if a connection comes from a page of this server: its Origin is the Host it was asked under, and that is
    `localhost`, an address in numbers or one of `names`. Another name may have been made to lead here (DNS rebinding)."""
    host, origin = headers.get("Host", ""), headers.get("Origin", "")
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.lower() != "" and _may_be_asked(host, local_only, names)


def may_load(headers: Mapping[str, str], local_only: bool, names: Collection[str] = ()) -> bool:
    """True if a page or file may be asked for: as `may_connect`, but who opens an address comes from no page."""
    if "Origin" in headers:
        return may_connect(headers, local_only, names)
    return _may_be_asked(headers.get("Host", ""), local_only, names)


def _may_be_asked(host: str, local_only: bool, names: Collection[str]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # no host and port
        return False
    return is_local(name) or name in names or (not local_only and _is_number(name))


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_local(host: str) -> bool:
    """True if only programs of this machine reach it."""
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def hidden_address() -> str:
    """An address of this machine that a page would have to guess, and its port too: one of 4e11.

    Raises:
        InputError: this machine has no such addresses.
    """
    address = f"127.{secrets.randbelow(256)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
    for probe in listen(address, 0):  # viser hangs where it can't
        probe.close()
    return address


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on all addresses of a name, on one port; 0: one that is free.

    Raises:
        InputError: the port is in use, or the address can't be bound.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InputError(f"--host {host}: is no address of this machine ({error.strerror})") from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in addresses:
        listening = socket.socket(family, kind, protocol)
        sockets.append(listening)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listening.bind((address[0], port or sockets[0].getsockname()[1], *address[2:]))
            listening.listen(100)
        except OSError as error:
            for opened in sockets:
                opened.close()
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"--port {port}: is in use on {host}; end that program or give another port") from error
            raise InputError(f"--host {host} --port {port}: can't be listened on ({error.strerror})") from error
    return sockets
