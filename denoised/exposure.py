"""No server by accident for everybody: beyond this machine it needs API keys, or to be told.

Asked once before a server listens. Requests are checked all the same (`server.auth`), so where
Redis does not answer yet the server may start: it lets nobody in.
"""

from __future__ import annotations

import shlex

from config.settings import Settings, default_data_dir
from denoised.errors import CommandError
from jobs.api_keys import KeyStore
from jobs.connections import connect
from jobs.embedded_redis import url_at
from jobs.errors import StoreUnavailable


def check_exposure(settings: Settings) -> None:
    """Raises CommandError when others could reach the server and there is no key for them.

    `settings.redis_url` must be set.
    """
    if settings.require_keys != "auto" or settings.is_local:
        return
    assert settings.redis_url is not None
    try:
        with connect(settings.redis_url) as redis:
            has_keys = bool(KeyStore(redis).all())
    except StoreUnavailable:
        return
    if not has_keys:
        raise CommandError(
            f"refusing to listen on {settings.host} without API keys: make one with "
            f"`{key_command(settings)}`, or set DENOISED_REQUIRE_KEYS=never if something else "
            "guards the server",
            exit_code=2,
        )


def key_command(settings: Settings) -> str:
    """The command that puts a key where this server looks for it.

    A Redis that was given is not repeated: its URL may hold a password.
    """
    command = "denoised keys create NAME"
    if settings.redis_url != url_at(settings.redis_dir):
        return f"{command} --redis-url URL"
    if settings.data_dir == default_data_dir():
        return command
    return f"{command} --data-dir {shlex.quote(str(settings.data_dir))}"
