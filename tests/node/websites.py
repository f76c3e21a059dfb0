"""HTTPS servers under well-known names, in the lab's world, with a certificate authority of their own."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from dnsguard.demo.lab import Lab


class Hello(http.server.BaseHTTPRequestHandler):
    """Answers every GET with the name that was asked for."""

    def do_GET(self) -> None:
        body = f"{self.headers['Host']} here\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """On a socket that is already bound and listening."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.getsockname()[:2], Hello, bind_and_activate=False)
        self.socket.close()
        self.socket = listening


def certify(folder: Path, names: Sequence[str]) -> Path:
    """Make `ca.pem`, and `site.pem` for these names signed by it. Returns the former's path."""
    ca, site = folder / "ca.pem", folder / "site.pem"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    _openssl(*new, "-keyout", str(folder / "ca.key"), "-out", str(ca), "-subj", "/CN=Test authority")
    signed = ["-CA", str(ca), "-CAkey", str(folder / "ca.key"), "-subj", f"/CN={names[0]}"]
    alternatives = ["-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)]
    _openssl(*new, *signed, *alternatives, "-keyout", str(folder / "site.key"), "-out", str(site))
    return ca


def _openssl(*argv: str) -> None:
    subprocess.run(["openssl", *argv], check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def running_website(lab: Lab, address: str, folder: Path) -> Iterator[None]:
    """HTTPS on 443 and HTTP on 80 of an address of the world, with `folder`'s certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "site.pem", folder / "site.key")
    lab.add_world_address(address)
    with contextlib.ExitStack() as stack:
        for port in (80, 443):
            plain = stack.enter_context(_listening(lab, address, port))
            listening = context.wrap_socket(plain, server_side=True) if port == 443 else plain
            server = Server(listening)
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), name=f"{address}:{port}", daemon=True)
            thread.start()
            stack.callback(_stop, server, thread)
        yield


def _listening(lab: Lab, address: str, port: int) -> socket.socket:
    opened = lab.socket(lab.world, socket.AF_INET, socket.SOCK_STREAM)
    opened.settimeout(None)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((address, port))
    opened.listen(16)
    return opened


def _stop(server: Server, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
