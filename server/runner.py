"""Running the application under uvicorn so that open streams end when the server is told to stop.

uvicorn waits for open responses before it runs the application's own shutdown; an event stream
would therefore hold it for the whole grace time. `ApiServer` tells the streams first.
"""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from config.settings import Settings
from server.app import announce_shutdown

GRACE_SECONDS = 10


class ApiServer(uvicorn.Server):
    """A uvicorn server for an application made by `create_app`; `run()` serves until a signal.

    Listens on `settings.host` and `settings.port` unless `run` is given sockets. Logs through the
    root logger.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        announce_shutdown(self._app)
        await super().shutdown(sockets)
