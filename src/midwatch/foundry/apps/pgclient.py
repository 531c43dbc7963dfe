"""PostgreSQL through libpq itself, so that every message is the one that drivers built on it pass on."""

from __future__ import annotations

import ctypes

_TUPLES_OR_COMMAND = (1, 2)
_SQLSTATE = ord("C")


class OperationalError(Exception):
    """The connection cannot be made, or broke."""


class DatabaseError(Exception):
    """The server refused a statement."""


_NAMED = {
    "40P01": "DeadlockDetected",
    "55P03": "LockNotAvailable",
    "57014": "QueryCanceled",
    "53100": "DiskFull",
    "53200": "OutOfMemory",
    "25006": "ReadOnlySqlTransaction",
    "42P01": "UndefinedTable",
    "42703": "UndefinedColumn",
    "42883": "UndefinedFunction",
    "42501": "InsufficientPrivilege",
    "23505": "UniqueViolation",
    "23514": "CheckViolation",
    "23502": "NotNullViolation",
    "57P01": "AdminShutdown",
    "57P02": "CrashShutdown",
}
_CLASSES = {state: type(name, (DatabaseError,), {}) for state, name in _NAMED.items()}


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)
_ignore = _SILENT(lambda _, __: None)


def _library() -> ctypes.CDLL:
    pq = ctypes.CDLL("libpq.so.5")
    pq.PQconnectdb.restype = pq.PQexec.restype = ctypes.c_void_p
    pq.PQerrorMessage.restype = pq.PQresultErrorMessage.restype = pq.PQresultErrorField.restype = ctypes.c_char_p
    for name in ("PQstatus", "PQerrorMessage", "PQfinish", "PQresultStatus", "PQresultErrorMessage", "PQclear"):
        getattr(pq, name).argtypes = [ctypes.c_void_p]
    pq.PQexec.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    pq.PQresultErrorField.argtypes = [ctypes.c_void_p, ctypes.c_int]
    pq.PQsetNoticeProcessor.argtypes = [ctypes.c_void_p, _SILENT, ctypes.c_void_p]
    return pq


class Session:
    """One connection."""

    def __init__(self, parameters: str) -> None:
        self._pq = _library()
        self._connection = self._pq.PQconnectdb(parameters.encode())
        if self._pq.PQstatus(self._connection) != 0:
            message = self._pq.PQerrorMessage(self._connection).decode().rstrip()
            self.close()
            raise OperationalError(message)
        self._pq.PQsetNoticeProcessor(self._connection, _ignore, None)

    def run(self, statement: str) -> None:
        """Run a statement; its rows are dropped. Raises `DatabaseError` with the server's words."""
        result = self._pq.PQexec(self._connection, statement.encode())
        try:
            if self._pq.PQresultStatus(result) in _TUPLES_OR_COMMAND:
                return
            message = (self._pq.PQresultErrorMessage(result) or b"").decode().rstrip()
            state = (self._pq.PQresultErrorField(result, _SQLSTATE) or b"").decode()
        finally:
            self._pq.PQclear(result)
        broken = not state or self._pq.PQstatus(self._connection) != 0
        error = OperationalError if broken else _CLASSES.get(state, DatabaseError)
        raise error(message.removeprefix("ERROR:  "))

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._pq.PQfinish(self._connection)
            self._connection = None


def connect(*, parameters: str) -> Session:
    """A connection by libpq's own parameter string."""
    return Session(parameters)
