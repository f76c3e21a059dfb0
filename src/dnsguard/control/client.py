"""The other side of the control socket: synchronous and small, for commands that ask once and end."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from dnsguard import __version__
from dnsguard.control.calls import CALLS, MISSING, USAGE, VERSION_HEADER, CallError, socket_path
from dnsguard.core.errors import DnsguardError

MARGIN: Final = 5.0
"""Seconds that the client waits beyond the daemon's own limit."""
START: Final = "start it with `systemctl start dnsguard`; `journalctl -u dnsguard` says why it ended"


class NotRunningError(DnsguardError):
    """Nobody listens on the control socket."""


class ControlClient:
    """Calls of one daemon. `daemon_version` is known after the first call."""

    def __init__(self, runtime: Path) -> None:
        self.path = socket_path(runtime)
        self.daemon_version: str | None = None

    def call(self, name: str, /, **arguments: str) -> Any:
        """The result of a call that returns one object. Raises NotRunningError or CallError."""
        connection, response = self._request(name, arguments)
        try:
            return _parsed(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise CallError(f"the daemon broke off its answer: {error}") from error
        finally:
            connection.close()

    def rows(self, name: str, /, **arguments: str) -> Iterator[Any]:
        """The rows of a call that returns a list, as they arrive; those of a live call come until the daemon ends.

        Raises as `call`, also in the middle.
        """
        connection, response = self._request(name, arguments)
        try:
            for line in response:
                if line == b"\n":
                    return
                yield _parsed(line)
        except (OSError, http.client.HTTPException) as error:
            raise CallError(f"the daemon broke off its answer: {error}") from error
        finally:
            connection.close()
        why = "was this read too slowly?" if CALLS[name].live else "rows are missing"
        raise CallError(f"the daemon broke off its answer: {why}")

    def version_note(self) -> str | None:
        """What to tell the operator when the daemon is of another version."""
        if self.daemon_version in (None, __version__):
            return None
        return f"the daemon runs version {self.daemon_version}, this is {__version__}: restart it to use the new one"

    def _request(
        self, name: str, arguments: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        call = CALLS[name]
        query = f"?{_encoded(arguments)}" if arguments else ""
        connection = _UnixConnection(self.path, call.limit + MARGIN)
        try:
            connection.request(call.method, f"/v1/{name}{query}")
            response = connection.getresponse()
            self.daemon_version = response.headers.get(VERSION_HEADER)
            if response.status != 200:
                raise _error(response)
            if call.live and connection.sock is not None:
                connection.sock.settimeout(None)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except CallError:
            connection.close()
            raise
        return connection, response

    def _unreachable(self, error: OSError | http.client.HTTPException) -> DnsguardError:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return NotRunningError(f"the daemon is not running (no socket at {self.path}): {START}")
        if isinstance(error, ConnectionRefusedError):
            return NotRunningError(f"the daemon is not running (nobody listens on {self.path}): {START}")
        if isinstance(error, PermissionError):
            denied = f"{self.path}: permission denied: run as root, or as a member of group dnsguard"
            return CallError(denied, MISSING)
        if isinstance(error, TimeoutError):
            return CallError(f"the daemon did not answer on {self.path} in time: look at its log")
        return CallError(f"the daemon broke off on {self.path}: {error}")


def _encoded(arguments: dict[str, str]) -> str:
    """Raises CallError (usage) for octets of the command line that are no text."""
    try:
        return urlencode(arguments)
    except UnicodeEncodeError as error:
        shown = repr(os.fsencode(error.object)).removeprefix("b")
        raise CallError(f"{shown} is not text in UTF-8: write it in letters and digits", USAGE) from error


def _error(response: http.client.HTTPResponse) -> CallError:
    body = response.read(1 << 20)
    try:
        told = json.loads(body)
        return CallError(str(told["error"]), int(told["exit"]))
    except (ValueError, KeyError, TypeError):
        return CallError(f"the daemon answered {response.status} {response.reason}")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CallError("the daemon's answer is not JSON: is it a dnsguard of another version?") from error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("dnsguard", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(bytes(self._path))
