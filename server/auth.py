"""Who is asking: the API key of a request, checked before anything else is looked at.

A server that is open (see `needs_key`) takes everybody for the anonymous owner and reads no key;
otherwise a request needs `Authorization: Bearer <key>`, and sees what came with the same key.
Liveness, readiness, metrics and the API's description need none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.api_keys import ANONYMOUS
from jobs.errors import StoreUnavailable
from server.problems import Problem, ProblemCode
from server.services import Services, ServicesDep

CHALLENGE = 'Bearer realm="denoised"'

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="apiKey",
    description="A key made by `denoised keys create`. Not needed while the server is open: on a "
    "loopback address before the first key is made, or with DENOISED_REQUIRE_KEYS=never.",
)


async def needs_key(services: Services) -> bool:
    """Whether requests need a key now, by `settings.require_keys`.

    `auto`: on a loopback address from the moment when the first key is made, elsewhere always.
    Asked anew for every request, so that making the first key closes a running server. Raises
    `StoreUnavailable`.
    """
    settings = services.settings
    if settings.require_keys == "auto" and settings.is_local:
        return await services.key_ring.any_made()
    return settings.require_keys != "never"


async def owner_of_request(
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> str:
    """The id of the request's key; empty where none is needed. Raises `Problem` (401)."""
    if not await needs_key(services):
        return ANONYMOUS
    if credentials is None:
        detail = "Send an API key: Authorization: Bearer dn_…; `denoised keys create` makes one."
        raise _unauthorized(detail, CHALLENGE)
    key = await services.key_ring.check(credentials.credentials)
    if key is None:
        detail = "The API key is not known here or has been revoked."
        raise _unauthorized(detail, f'{CHALLENGE}, error="invalid_token"')
    return key.id


Recheck = Callable[[], Awaitable[bool]]
"""Asks whether the request would still be let in, as the same owner."""


def recheck_of_request(
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    owner: Annotated[str, Depends(owner_of_request)],
) -> Recheck:
    """For answers that go on for long. While Redis is away they do: it cannot tell."""

    async def recheck() -> bool:
        try:
            return await owner_of_request(services, credentials) == owner
        except StoreUnavailable:
            return True
        except Problem:
            return False

    return recheck


def _unauthorized(detail: str, challenge: str) -> Problem:
    return Problem(401, ProblemCode.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})


NEEDS_KEY = Depends(owner_of_request)
"""For routers: the key is checked before anything else in the request."""

OwnerDep = Annotated[str, Depends(owner_of_request)]

RecheckDep = Annotated[Recheck, Depends(recheck_of_request)]
