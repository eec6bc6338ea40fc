"""The application: routes put together, connections opened and closed around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from config.model_spec import ModelSpec
from config.settings import Settings
from server import error_handlers
from server.documentation import install_openapi
from server.observing import ObservingMiddleware
from server.routes import estimate, events, files, health, jobs, models, outputs
from server.services import Services, open_services

API_VERSION = "1.0"


def create_app(settings: Settings, specs: Sequence[ModelSpec]) -> FastAPI:
    """The ASGI application that offers `specs`. `settings.redis_url` must be set.

    Redis need not answer yet: routes that need it say 503 until it does.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, specs) as services:
            app.state.services = services
            yield
            services.stopping.set()

    app = FastAPI(
        title="denoised",
        summary="Asynchronous generation of pictures and clips over HTTP.",
        version=API_VERSION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_middleware(ObservingMiddleware)
    error_handlers.install(app)
    for module in (jobs, estimate, events, outputs, files, models, health):
        app.include_router(module.router)
    install_openapi(app)
    return app


def announce_shutdown(app: FastAPI) -> None:
    """Ends open event streams and waits of an application that is about to stop."""
    services: Services | None = getattr(app.state, "services", None)
    if services is not None:
        services.stopping.set()
