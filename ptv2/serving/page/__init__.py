"""The page for people at `/`: static files, which ask the server that they come from alone."""

from importlib.resources import files

from fastapi import APIRouter, Response

_TYPES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "answers.js": "text/javascript",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def router() -> APIRouter:
    """The routes: `/` for index.html, and the other files by their names."""
    routes = APIRouter(include_in_schema=False)
    for name, kind in _TYPES.items():
        path = "/" if name == "index.html" else f"/{name}"
        routes.add_api_route(path, _File(name, kind))
    return routes


class _File:
    """Answers with a file of this package."""

    def __init__(self, name: str, kind: str) -> None:
        self._content = (files(__name__) / name).read_bytes()
        self._kind = kind

    async def __call__(self) -> Response:
        return Response(self._content, headers=_HEADERS, media_type=self._kind)
