"""A real PostgreSQL for tests, of Debian's package: a cluster in a folder of its own, reached by a socket there, gone afterwards."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

_PROGRAMS = Path("/usr/lib/postgresql")
_START_SECONDS = 30


class Postgres:
    """One server: `with Postgres() as server: ...`. It refuses to be root's, so as root it is user postgres's.

    Args:
        port: on 127.0.0.1 besides the socket, for containers; 0: none.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        # A socket's path must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="akidb-pg-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        data = self.folder / "data"
        self._run("initdb", "-D", str(data), "-U", "akidb", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()
        return self

    def start(self) -> None:
        """Start, and wait until it answers."""
        listen = ("-c", "listen_addresses=127.0.0.1", "-p", str(self.port)) if self.port else ("-c", "listen_addresses=")
        options = ("-k", str(self.folder), *listen, "-c", "fsync=off")
        command = self._command("postgres", "-D", str(self.folder / "data"), *options)
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + _START_SECONDS
        while subprocess.run(
            self._command("pg_isready", "-h", str(self.folder), *self._at), capture_output=True, check=False
        ).returncode:
            if time.monotonic() > end:
                raise TimeoutError(f"PostgreSQL in {self.folder} does not answer")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it at once: a polite end waits for every client."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_START_SECONDS)
            self._process = None

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def database(self) -> str:
        """SQLAlchemy URL of a new, empty database."""
        name = f"t{secrets.token_hex(6)}"
        self._run("createdb", "-h", str(self.folder), *self._at, "-U", "akidb", name)
        return f"postgresql+psycopg://akidb@/{name}?host={self.folder}"

    @property
    def _at(self) -> list[str]:
        return ["-p", str(self.port)] if self.port else []

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(self._command(program, *arguments), check=True, capture_output=True)

    @staticmethod
    def _command(program: str, *arguments: str) -> list[str]:
        newest = max(_PROGRAMS.glob("*/bin/initdb"), default=None)
        if newest is None:
            raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        return [*as_user, str(newest.parent / program), *arguments]
