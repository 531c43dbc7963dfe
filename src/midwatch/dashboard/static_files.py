"""The files beside the pages: found in the package, named by their content, cached for long when asked by that name."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope


def static_folder() -> Path:
    """The folder of style sheet, scripts and mark."""
    return Path(__file__).parent / "static"


@cache
def asset(name: str) -> str:
    """The URL of a static file, with a digest of its content, so that a new version is a new URL."""
    digest = hashlib.sha256((static_folder() / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


class CachedStatic(StaticFiles):
    """Static files with an ETag: kept for a year under a versioned URL, asked for again each time without."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or a plain 404 or 405 (an answer, not an exception, so that it gets the security headers too)."""
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            return PlainTextResponse(error.detail, status_code=error.status_code)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """The file, or 304 if the browser has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        versioned = "v" in QueryParams(scope.get("query_string", b""))
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if versioned else "no-cache"
        return response
