"""A web server on loopback that notes what it is asked, and answers as a test wants."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[socket.socket], None]


def says(answer: bytes) -> Answer:
    """An answer that is this, byte for byte."""
    return lambda connection: connection.sendall(answer)


OK = says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")


def status(number: int, *headers: str, body: bytes = b"") -> Answer:
    """An answer with a status and a foreign phrase behind it."""
    head = [f"HTTP/1.1 {number} foreign words", f"Content-Length: {len(body)}", *headers]
    return says("\r\n".join([*head, "", ""]).encode() + body)


def drips(connection: socket.socket) -> None:
    """A byte of a header now and then."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.1)


def never_ends(connection: socket.socket) -> None:
    """An answer without end, as fast as it is taken."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def redirects_without_end(connection: socket.socket) -> None:
    """To itself, with a body without end."""
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def is_silent(connection: socket.socket) -> None:
    """Nothing, until the other side goes."""
    while connection.recv(65536):
        pass


@dataclass
class Listener:
    """The server. `requests`: method, path and body of each, in their order; `raw`: all bytes that came."""

    port: int
    answer: Answer = OK
    talks_first: Answer | None = None  # before anything is asked
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        """What was asked, in its order."""
        return [path for _, path, _ in self.requests]


@contextmanager
def listening(answer: Answer = OK) -> Iterator[Listener]:
    """A server until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = Listener(server.getsockname()[1], answer)
        ended = threading.Event()
        server.settimeout(0.05)

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.settimeout(20)
                if listener.talks_first:
                    listener.talks_first(connection)
                take_request(connection, listener)
                listener.answer(connection)

        def accept() -> None:
            while not ended.is_set():
                with suppress(TimeoutError):
                    threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener
        finally:
            ended.set()
            thread.join()


def take_request(connection: socket.socket, listener: Listener) -> None:
    """Read a request to its end, and note it."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := connection.recv(65536)):
            return
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    listener.raw.append(head + b"\r\n\r\n" + body)
    method, path, _ = lines[0].split()
    listener.requests.append((method, path, body.decode()))
