"""The outermost layer of every request: its id, its line in the log, its time, its last resort.

Pure ASGI, so that streams pass untouched. Logs and metrics see the route's template and never a
prompt, a query string or a job id.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.error_handlers import METHODS
from server.metrics import HTTP_REQUEST_SECONDS
from server.problems import Problem, ProblemCode, render

access_log = logging.getLogger("denoised.access")
error_log = logging.getLogger("denoised.server")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines; logged at debug level only."""


def request_id_from(header: str | None) -> str:
    """The caller's id if it is short and plain, else a fresh one."""
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header
    return f"req_{uuid.uuid4().hex}"


def route_template(scope: Scope) -> str:
    """`/v1/jobs/{job_id}` and the like; "unmatched" where no route answered."""
    return getattr(scope.get("route"), "path", "unmatched")


class ObservingMiddleware:
    """Gives a request its id, observes it, and turns an unforeseen exception into a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = request_id_from(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
                _observe(scope, status, time.perf_counter() - began)
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        except Exception:
            error_log.exception("unhandled exception, request_id=%s", request_id)
            if status is not None:
                raise
            response = render(
                Problem(
                    500,
                    ProblemCode.INTERNAL,
                    "The server failed to answer; its log has the cause under this request id.",
                ),
                path=scope["path"],
                request_id=request_id,
            )
            await response(scope, receive, observed_send)
        finally:
            access_log.log(
                logging.DEBUG if route_template(scope) in PROBES else logging.INFO,
                "method=%s route=%s status=%s seconds=%.4f request_id=%s",
                _method(scope),
                route_template(scope),
                status,
                time.perf_counter() - began,
                request_id,
            )


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in METHODS else "OTHER"


def _observe(scope: Scope, status: int, seconds: float) -> None:
    HTTP_REQUEST_SECONDS.labels(route_template(scope), _method(scope), str(status)).observe(seconds)
