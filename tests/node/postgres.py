"""A cluster of two real PostgreSQL servers: a writer and a hot standby that replicates it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.demo.lab import Lab
from tests.node.daemon import wait_for

PORT = 5432
START_SECONDS = 30.0
USER = "app"

SETTINGS = """
listen_addresses = '{address}'
port = 5432
unix_socket_directories = ''
fsync = off
shared_buffers = 16MB
"""
TRUST = f"host all {USER} all trust\nhost replication {USER} all trust\n"


def binaries() -> Path:
    """The folder of the newest PostgreSQL's programs. Fails the test when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        pytest.fail("PostgreSQL is missing: apt-get install -y postgresql")
    return found[-1]


@contextlib.contextmanager
def running_cluster(lab: Lab, writer: str, reader: str) -> Iterator[Cluster]:
    """Both servers accept connections on these addresses of the lab's world when this is entered."""
    lab.add_world_address(writer, reader)
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        cluster = Cluster(lab, folder)
        cluster.make(writer, reader)
        with cluster.running(writer), cluster.running(reader):
            yield cluster


class Cluster:
    """Two data directories, each named by the address that its server listens on."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self._folder = lab, folder

    def make(self, writer: str, reader: str) -> None:
        """A new database for the writer, and a copy of it that follows."""
        home = self._folder / writer
        self._as_postgres("initdb", "--username", USER, "--auth", "reject", "--no-sync", "-D", str(home), "--locale=C")
        (home / "pg_hba.conf").write_text(TRUST)
        shutil.copytree(home, self._folder / reader)
        for address in (writer, reader):
            with (self._folder / address / "postgresql.conf").open("a") as settings:
                settings.write(SETTINGS.format(address=address))
        (self._folder / reader / "standby.signal").touch()
        with (self._folder / reader / "postgresql.conf").open("a") as settings:
            settings.write(f"primary_conninfo = 'host={writer} user={USER}'\n")
        self._own()

    @contextlib.contextmanager
    def running(self, address: str) -> Iterator[None]:
        log = self._folder / f"{address}.log"
        command = _as_user(str(binaries() / "postgres"), "-D", str(self._folder / address))
        with log.open("w") as output:
            process = self._lab.popen(self._lab.world, *command, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: process.poll() is not None or self.query(address, "select 1") == "1", START_SECONDS)
            assert process.poll() is None, log.read_text()[-2000:]
            yield
        finally:
            # Not SIGTERM, which waits for clients to go.
            process.send_signal(signal.SIGINT)
            process.wait(20)

    def query(self, address: str, sql: str) -> str | None:
        """What one server says, asked from beside it; None when it does not accept."""
        command = ("psql", "-XtA", "-h", address, "-U", USER, "-d", "postgres", "-c", sql)
        told = self._lab.run(self._lab.world, *command, check=False)
        return told.stdout.strip() if told.returncode == 0 else None

    def promote(self, reader: str) -> None:
        """Let the standby take writes."""
        assert self.query(reader, "select pg_promote()") == "t"

    def _as_postgres(self, program: str, *argv: str) -> None:
        subprocess.run(_as_user(str(binaries() / program), *argv), check=True, capture_output=True, timeout=60, cwd="/")

    def _own(self) -> None:
        account = pwd.getpwnam("postgres")
        for path in self._folder.rglob("*"):
            os.chown(path, account.pw_uid, account.pw_gid)
        for home in self._folder.iterdir():
            home.chmod(0o700)


def _as_user(*argv: str) -> list[str]:
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", *argv]
