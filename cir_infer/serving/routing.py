"""From a path to the function that answers, with nothing between.

FastAPI's own way to a function leads through eleven layers, which cost as much as all that a function of ours
does on the event loop. It makes the OpenAPI document of these routes; requests do not pass it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from cir_infer.serving.bodies import Budget

__all__ = ["Endpoint", "Routes"]

Function: TypeAlias = Callable[..., Awaitable[Any]]


class Endpoint:
    """A function of a request, as an ASGI application. What it raises is the Guard's.

    Args:
        path: the pattern that leads to it, by which metrics and the log name it.
        function: takes the request and the parts of the path, gives a response.
        budget: what the request took of it is given back.
    """

    def __init__(self, path: str, function: Function, budget: Budget) -> None:
        from starlette.requests import Request

        self.path, self._function, self._budget, self._request = path, function, budget, Request

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """See the ASGI specification."""
        scope["route"] = self
        request = self._request(scope, receive)
        try:
            response = await self._function(request, **scope["path_params"])
        finally:
            self._budget.give_back(scope["state"].get("taken", 0))
        await response(scope, receive, send)


class Routes:
    """Every route. A path that leads nowhere, or has not this method, raises Starlette's HTTPException.

    Args:
        budget: of the bodies of requests.
        lifespan: see Starlette.
    """

    def __init__(self, budget: Budget, lifespan: Any) -> None:
        from starlette.routing import Router

        self._budget = budget
        self._router = Router(redirect_slashes=False, lifespan=lifespan)
        self._plain: dict[tuple[str, str], Endpoint] = {}

    def add(self, method: str, path: str, function: Function) -> None:
        """Let a function answer; a HEAD is answered like a GET, and uvicorn leaves the body out."""
        from starlette.routing import Route

        endpoint = Endpoint(path, function, self._budget)
        self._router.routes.append(Route(path, endpoint, methods=[method]))
        if "{" not in path:
            self._plain[method, path] = endpoint

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http":
            endpoint = self._plain.get((scope["method"], scope["path"]))
            if endpoint is not None:  # without trying one pattern after the other
                scope["path_params"] = {}
                await endpoint(scope, receive, send)
                return
        scope["app"] = self  # else Starlette answers by itself where it finds no route
        await self._router(scope, receive, send)
