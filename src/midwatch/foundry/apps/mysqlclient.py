"""MariaDB and MySQL through libmariadb itself, so that every message is the one that drivers built on it pass on."""

from __future__ import annotations

import ctypes
from typing import Any

_CONNECT_TIMEOUT, _READ_TIMEOUT, _SSL_CA, _SSL_VERIFY = 0, 11, 27, 21


class OperationalError(Exception):
    """The server cannot be reached or cannot do it now; the number is the server's own."""


class ProgrammingError(Exception):
    """The statement does not fit the schema."""


_PROGRAMMING = frozenset((1064, 1146, 1305))


def _library() -> ctypes.CDLL:
    my = ctypes.CDLL("libmariadb.so.3")
    my.mysql_init.restype = my.mysql_real_connect.restype = my.mysql_store_result.restype = ctypes.c_void_p
    my.mysql_error.restype = ctypes.c_char_p
    my.mysql_fetch_row.restype = ctypes.POINTER(ctypes.c_char_p)
    for name in ("init", "error", "errno", "store_result", "free_result", "close", "fetch_row"):
        getattr(my, f"mysql_{name}").argtypes = [ctypes.c_void_p]
    my.mysql_query.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    my.mysql_options.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    text = ctypes.c_char_p
    port = ctypes.c_uint
    my.mysql_real_connect.argtypes = [ctypes.c_void_p, text, text, text, text, port, text, ctypes.c_ulong]
    return my


class Session:
    """One connection."""

    def __init__(self, host: str, port: int, *, user: str, password: str, database: str, ca: str) -> None:
        self._my = _library()
        self._handle = self._my.mysql_init(None)
        for option in (_CONNECT_TIMEOUT, _READ_TIMEOUT):
            self._my.mysql_options(self._handle, option, ctypes.byref(ctypes.c_uint(8)))
        if ca:
            self._my.mysql_options(self._handle, _SSL_CA, ca.encode())
            self._my.mysql_options(self._handle, _SSL_VERIFY, ctypes.byref(ctypes.c_char(b"\x01")))
        made = self._my.mysql_real_connect(
            self._handle, host.encode(), user.encode(), password.encode(), database.encode(), port, None, 0
        )
        if not made:
            error = self._error()
            self.close()
            raise error

    def run(self, statement: str) -> Any:
        """Run a statement; the first value of its first row. Raises with the server's words and number."""
        if self._my.mysql_query(self._handle, statement.encode()):
            raise self._error()
        result = self._my.mysql_store_result(self._handle)
        if not result:
            return None
        row = self._my.mysql_fetch_row(result)
        value = row[0].decode("utf-8", "replace") if row and row[0] else None
        self._my.mysql_free_result(result)
        return value

    def _error(self) -> Exception:
        number = int(self._my.mysql_errno(self._handle))
        text = self._my.mysql_error(self._handle).decode("utf-8", "replace")
        kind = ProgrammingError if number in _PROGRAMMING else OperationalError
        return kind(f"({number}, {text!r})")

    def close(self) -> None:
        """Close the connection."""
        if self._handle:
            self._my.mysql_close(self._handle)
            self._handle = None


def connect(*, host: str, port: int, user: str, password: str, database: str, ca: str = "") -> Session:
    """A connection."""
    return Session(host, port, user=user, password=password, database=database, ca=ca)
