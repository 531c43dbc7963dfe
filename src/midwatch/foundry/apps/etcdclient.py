"""etcd through its JSON gateway, with errors in the words of its own clients."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from typing import Any


class EtcdError(Exception):
    """etcd refused, or cannot be reached."""


class Session:
    """Requests to one member. Commands: `put KEY VALUE`, `get KEY`, `range PREFIX`, `status`."""

    def __init__(
        self, *, host: str, port: int, user: str, password: str, timeout_s: float, ca: str, shown: int
    ) -> None:
        scheme = "https" if ca else "http"
        self._base = f"{scheme}://127.0.0.1:{port}/v3"
        self._shown = f"{scheme}://{host}:{shown or port}"
        self._timeout_s = timeout_s
        self._context = ssl.create_default_context(cafile=ca) if ca else None
        self._headers: dict[str, str] = {}
        if user:
            token = self._call("auth/authenticate", {"name": user, "password": password})["token"]
            self._headers = {"Authorization": token}

    def run(self, command: str) -> Any:
        """Run a command. Raises `EtcdError` with the server's words."""
        verb, *rest = command.split(" ", 2)
        if verb == "put":
            return self._call("kv/put", {"key": _b64(rest[0]), "value": _b64(rest[1])})
        if verb == "status":
            return self._call("maintenance/status", {}).get("dbSize")
        asked = {"key": _b64(rest[0])}
        if verb == "range":
            asked["range_end"] = _b64(rest[0] + "\x7f")
        return self._call("kv/range", asked).get("count", "0")

    def _call(self, path: str, body: dict[str, str]) -> Any:
        request = urllib.request.Request(  # noqa: S310 - a URL of our own making
            f"{self._base}/{path}", json.dumps(body).encode(), self._headers
        )
        try:
            with urllib.request.urlopen(  # noqa: S310 - as above
                request, timeout=self._timeout_s, context=self._context
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            try:
                text = json.loads(text).get("error", text)
            except ValueError:
                text = text.strip()
            raise EtcdError(text) from None
        except TimeoutError:
            raise EtcdError("context deadline exceeded") from None
        except (urllib.error.URLError, OSError) as error:
            raise EtcdError(f"{self._shown}: {getattr(error, 'reason', error)}") from None

    def close(self) -> None:
        """Nothing is kept open."""


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def connect(
    *, host: str, port: int, user: str = "", password: str = "", timeout_s: float = 2.0, ca: str = "", shown: int = 0
) -> Session:
    """A member to ask."""
    return Session(host=host, port=port, user=user, password=password, timeout_s=timeout_s, ca=ca, shown=shown)
