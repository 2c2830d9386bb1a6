"""Check before training that a tracking store can be a store at all.

A store that does not answer is not refused: the run continues without it. MLflow is imported late.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from rlhf_lightning.addresses import check_address
from rlhf_lightning.errors import UserError, blaming, reason
from rlhf_lightning.secret_text import shown

_PATIENCE = 3.0  # seconds
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")  # a driver may follow: mysql+x
_PROBE = "/api/2.0/mlflow/experiments/get-by-name"  # where MLflow would ask for a password
_REFUSED = (401, 403)


def check_tracking(uri: str) -> None:
    """Raise UserError for what waiting cannot fix: not the address of a store, no database, or a wrong password.

    Args:
        uri: the store's address.

    Raises:
        UserError: as described above.
    """
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    if scheme not in _SCHEMES:
        raise UserError(
            f'logger.tracking_uri: found "{shown(uri)}"; must be sqlite:///file.db, http(s)://host:port, or the '
            "address of a PostgreSQL, MySQL or SQL Server database"
        )
    if scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in ("http", "https"):
        _check_server(uri)
    elif scheme != "databricks":
        _check_driver(uri)


def _check_sqlite(uri: str) -> None:
    if not uri.startswith("sqlite:///") or uri == "sqlite:///":
        raise UserError(f'logger.tracking_uri: found "{shown(uri)}"; must be sqlite:///<file>')
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    with blaming(f"logger.tracking_uri: {file.parent} cannot be created"):
        file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise UserError(f"logger.tracking_uri: {file} is a folder; give sqlite:///<file>")
    with contextlib.suppress(PermissionError):
        if file.is_file() and file.stat().st_size and not _begins_with(file, b"SQLite format 3"):
            raise UserError(f"logger.tracking_uri: {file} is not an SQLite database; name another file")


def _begins_with(file: Path, mark: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(mark)) == mark


def _check_driver(uri: str) -> None:
    """Import the driver that the database's address names, without connecting."""
    import sqlalchemy

    try:
        sqlalchemy.create_engine(uri).dispose()
    except Exception as error:  # from its parser or any driver
        raise UserError(
            f"logger.tracking_uri: {shown(uri)} cannot be used ({shown(reason(error))}); correct the address, or "
            "install its driver"
        ) from error


def _check_server(uri: str) -> None:
    check_address("logger.tracking_uri", uri, credentials=True, query=True)
    try:
        urllib.request.urlopen(_probe(uri), timeout=_PATIENCE).close()
    except urllib.error.HTTPError as error:
        # The client can log in in ways that this check cannot, so it decides.
        if error.code in _REFUSED and _client_is_refused(uri):
            raise UserError(
                f"logger.tracking_uri: {shown(uri)} refuses the login (error {error.code}); correct the user and "
                "password in the address, or in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or choose "
                "logger=none"
            ) from error
    except (OSError, ValueError, http.client.HTTPException):
        return  # the run goes on, and says so


def _probe(uri: str) -> urllib.request.Request:
    """Return a request with the address's user and password in a header: urllib would take them for a port."""
    parts = urllib.parse.urlsplit(uri)
    credentials, _, host = parts.netloc.rpartition("@")
    address = urllib.parse.urlunsplit(
        (parts.scheme, host, f"{parts.path.rstrip('/')}{_PROBE}", "experiment_name=Default", "")
    )
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if not credentials and user and password:
        credentials = f"{urllib.parse.quote(user)}:{urllib.parse.quote(password)}"
    if credentials:
        encoded = base64.b64encode(urllib.parse.unquote(credentials).encode()).decode()
        return urllib.request.Request(address, headers={"Authorization": f"Basic {encoded}"})
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
    return urllib.request.Request(address)


def _client_is_refused(uri: str) -> bool:
    """Return whether MLflow's own client is refused too."""
    from mlflow import MlflowClient

    try:
        MlflowClient(uri).get_experiment_by_name("Default")
    except Exception as error:  # a network error, or whatever else a server answers
        refusals = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
        return getattr(error, "error_code", None) in refusals or any(
            f"error code {code}" in str(error) for code in _REFUSED
        )
    return False
