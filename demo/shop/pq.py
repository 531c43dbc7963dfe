"""A thin PostgreSQL client over the real libpq, so that errors read as any driver shows them. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import time
from collections.abc import Iterator

_pq = ctypes.CDLL("libpq.so.5")
for _name in ("PQconnectdb", "PQexec", "PQresultErrorMessage", "PQerrorMessage", "PQgetvalue"):
    getattr(_pq, _name).restype = ctypes.c_void_p
_OK = {1, 2}  # PGRES_COMMAND_OK, PGRES_TUPLES_OK


class DatabaseError(Exception):
    """The server or libpq said no; the text is theirs."""


def _text(pointer: int | None) -> str:
    return (ctypes.string_at(pointer) if pointer else b"").decode("utf-8", "replace").strip()


class Connection:
    """One connection. `opened_at` is the monotonic time of its birth."""

    def __init__(self, dsn: str) -> None:
        self._raw = ctypes.c_void_p(_pq.PQconnectdb(dsn.encode()))
        self.opened_at = time.monotonic()
        if _pq.PQstatus(self._raw) != 0:
            message = _text(_pq.PQerrorMessage(self._raw))
            self.close()
            raise DatabaseError(message)

    def execute(self, sql: str) -> list[tuple[str, ...]]:
        """Run one statement; rows as text."""
        result = ctypes.c_void_p(_pq.PQexec(self._raw, sql.encode()))
        try:
            if _pq.PQresultStatus(result) not in _OK:
                raise DatabaseError(_text(_pq.PQresultErrorMessage(result)) or _text(_pq.PQerrorMessage(self._raw)))
            rows, columns = _pq.PQntuples(result), _pq.PQnfields(result)
            return [tuple(_text(_pq.PQgetvalue(result, r, c)) for c in range(columns)) for r in range(rows)]
        finally:
            _pq.PQclear(result)

    def close(self) -> None:
        """Say goodbye to the server."""
        _pq.PQfinish(self._raw)


class Pool:
    """Keeps idle connections, and renews one that is older than `max_age_s`."""

    def __init__(self, dsn: str, *, max_age_s: float) -> None:
        self._dsn = dsn
        self._max_age_s = max_age_s
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """One connection for a while; it is closed, not kept, if something goes wrong."""
        try:
            connection = self._idle.get_nowait()
            if time.monotonic() - connection.opened_at > self._max_age_s:
                connection.close()
                connection = Connection(self._dsn)
        except queue.Empty:
            connection = Connection(self._dsn)
        try:
            yield connection
        except DatabaseError:
            connection.close()
            raise
        self._idle.put(connection)

    def execute(self, sql: str) -> list[tuple[str, ...]]:
        """Run one statement; its rows."""
        with self.connection() as connection:
            return connection.execute(sql)
