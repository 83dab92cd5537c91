"""What people see in a browser: the page, and the manual of the API. Both ask no other host.

Their files are built by `make web` and lie in one folder; without them the service works, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

WEB: Final = Path(__file__).parents[1] / "web"
MANUAL_SCRIPT: Final = "swagger-ui/swagger-ui-bundle.js"
MANUAL_STYLE: Final = "swagger-ui/swagger-ui.css"
# Swagger UI starts from a script within its page, styles with attributes, and shows answers as blobs.
MANUAL_POLICY: Final = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' blob: data:",
    ]
)
HEAD: Final = '<!doctype html><html lang="en"><meta charset="utf-8">'
NO_PAGE: Final = f"""{HEAD}<title>Acorn</title>
<h1>Acorn is running</h1>
<p>The page has not been built into this copy. <code>make web</code> builds it.</p>
<p>The service itself is complete: <a href="docs">read its manual</a>
or <a href="scenes">list the scenes</a>.</p></html>
"""
NO_MANUAL: Final = f"""{HEAD}<title>Acorn</title>
<h1>The manual of Acorn</h1>
<p>What shows the manual has not been built into this copy. <code>make web</code> builds it.</p>
<p>Its text, for programs, is <a href="openapi.json">openapi.json</a>.</p></html>
"""


def install(app: FastAPI, folder: Path = WEB) -> set[str]:
    """Serve the page at `/`, the manual at `/docs`, and the files of both from `folder`.

    Returns all that: the first part of each path.
    """

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        index = folder / "index.html"
        if not index.is_file():
            return HTMLResponse(NO_PAGE)
        return FileResponse(index, headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    def manual() -> Response:
        if not (folder / MANUAL_SCRIPT).is_file():
            return HTMLResponse(NO_MANUAL)
        return _manual(app.title)

    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for file in files:
        if file.is_dir():
            app.mount(f"/{file.name}", StaticFiles(directory=file))
        elif file.name != "index.html":
            _add_file(app, file)
    return {"/", "/docs", *(f"/{file.name}" for file in files)}


def _manual(title: str) -> Response:
    """Addresses are relative, so that it works below any path of a proxy."""
    response = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=title,
        swagger_js_url=MANUAL_SCRIPT,
        swagger_css_url=MANUAL_STYLE,
        swagger_favicon_url="acorn.svg",
        # By default, a service on the internet is asked whether the manual is well-formed.
        swagger_ui_parameters={"validatorUrl": None},
    )
    response.headers["Content-Security-Policy"] = MANUAL_POLICY
    return response


def _add_file(app: FastAPI, file: Path) -> None:
    @app.get(f"/{file.name}", include_in_schema=False)
    def get() -> FileResponse:
        return FileResponse(file)
