"""A PostgreSQL server for the tests, if its programs are installed on this machine."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

HOW = (
    "apt-get install postgresql; pip install 'psycopg[binary]'; make test-postgres (or give the URL of a database that "
    "tests may fill as RLHF_TEST_DATABASE=postgresql+psycopg://user@host/name)"
)


def programs() -> Path | None:
    """Return where initdb and pg_ctl are; Debian keeps them off the path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)


@contextlib.contextmanager
def postgresql(binaries: Path) -> Iterator[str]:
    """Start a server on a socket in a temporary folder, and give its URL. It refuses to run as root."""
    with tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp") as name:
        folder, user = Path(name), _user()
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)

        def run(program: str, *words: str) -> None:
            command = [str(binaries / program), *words]
            subprocess.run(command, check=True, cwd=folder, user=user, stdout=subprocess.DEVNULL)

        data, log = str(folder / "data"), str(folder / "log")
        run("initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        run("pg_ctl", "-D", data, "-l", log, "-w", "-o", f"-k {folder} -c listen_addresses=''", "start")
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"
