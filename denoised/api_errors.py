"""What a server says no with, as exceptions: refusals with their problem code, and silence."""

from __future__ import annotations

from collections.abc import Sequence

import httpx2

from denoised.errors import ClientError

UNKNOWN = "unknown"
"""The code of a refusal that is no problem document: mostly another program answered."""


class ServerUnreachable(ClientError):
    """No answer from the server: nothing listens there, or the connection broke."""


class ApiError(ClientError):
    """The server refused. `code` is its problem code, `param` the field at fault if there is one.

    `retry_after` is in seconds, when the server named a time. `errors` are all fields at fault with
    a message each, where there are several.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        errors: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(f"{param}: {detail}" if param and param not in detail else detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.retry_after = retry_after
        self.errors = tuple(errors)


def refusal(response: httpx2.Response) -> ApiError:
    """The error that an answer of 400 or above stands for, whatever its body."""
    try:
        problem = response.json()
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        problem, detail = {}, f"{response.request.url} answered {response.status_code}"
    errors = [(str(e["param"]), str(e["message"])) for e in problem.get("errors") or ()]
    if errors:
        detail = "; ".join(m if p in m else f"{p}: {m}" for p, m in errors)
    after = response.headers.get("Retry-After", "")
    return ApiError(
        response.status_code,
        str(problem.get("code", UNKNOWN)),
        detail,
        param=problem.get("param"),
        retry_after=float(after) if after.isdecimal() else None,
        errors=errors,
    )
