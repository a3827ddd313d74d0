"""What the control server answers: paths and bodies, to and from calls of the `Desk`.

Every error is `{"error": "..."}`: 400 a wrong request, 401 and 403 by the guard, 404 what is not there,
409 what cannot be done as things stand.
"""

import asyncio
import io
import logging

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from rich.console import Console

from configs.load import ConfigError
from rollout import prometheus, transcript
from rollout.books import RECENT_ROLLOUTS
from rollout.desk import Desk
from rollout.files import RolloutRow
from rollout.guard import Guard
from rollout.pool_orders import PoolOrder
from rollout.refusals import NotThere, Refused

logger = logging.getLogger(__name__)

# Rollouts shown unless asked for more.
SHOWN = 20
# Headers of an error that say more than its text.
_PASSED_ON = ("WWW-Authenticate", "Allow")
# Columns of a transcript.
WIDTH = 100


class BadRequest(ValueError):
    """The request is wrong; the message names field, value and cure."""


def application(desk: Desk, guard: Guard) -> web.Application:
    """The server of one run."""

    async def status(_: web.Request) -> web.Response:
        return _json(desk.status())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=desk.metrics().encode(), headers={"Content-Type": prometheus.CONTENT_TYPE}
        )

    async def rollouts(request: web.Request) -> web.Response:
        rows = desk.rollouts(_limit(request))
        if "text/plain" in request.headers.get("Accept", ""):
            return web.Response(text=_transcripts(rows))
        return _json(rows)

    async def pools(_: web.Request) -> web.Response:
        return _json(desk.pools())

    async def add_pool(request: web.Request) -> web.Response:
        # In a thread: what is said of a mistake is read from the source of the settings.
        order = await asyncio.to_thread(PoolOrder.read, await request.read())
        info = await desk.add_pool(order.name, order.section, replace=order.replace)
        return _json(info)

    async def remove_pool(request: web.Request) -> web.Response:
        return _json(await desk.remove_pool(request.match_info["name"]))

    async def lift(request: web.Request) -> web.Response:
        return _json(desk.lift(request.match_info["name"]))

    async def pause(_: web.Request) -> web.Response:
        return _json(desk.pause())

    async def resume(_: web.Request) -> web.Response:
        return _json(desk.resume())

    async def checkpoint(_: web.Request) -> web.Response:
        return _json(await desk.checkpoint())

    app = web.Application(middlewares=[_errors, _guarded(guard)])
    app.add_routes(
        [
            web.get("/status", status),
            web.get("/metrics", metrics),
            web.get("/rollouts", rollouts),
            web.get("/pools", pools),
            web.post("/pools", add_pool),
            web.delete("/pools/{name}", remove_pool),
            web.post("/pools/{name}/lift", lift),
            web.post("/pause", pause),
            web.post("/resume", resume),
            web.post("/checkpoint", checkpoint),
        ]
    )
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as JSON; one that nobody foresaw is logged and ends nothing."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        headers = {name: error.headers[name] for name in _PASSED_ON if name in error.headers}
        return _failed(error.status, error.reason, headers)
    except (BadRequest, ConfigError) as error:
        return _failed(400, str(error))
    except NotThere as error:
        return _failed(404, str(error))
    except Refused as error:
        return _failed(409, str(error))
    except Exception as error:
        logger.exception("%s %s failed", request.method, request.path)
        return _failed(500, f"{type(error).__name__}: {error}")


def _guarded(guard: Guard) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        guard.check(request)
        return await handler(request)

    return check


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(SHOWN))
    if not text.isdecimal() or not 1 <= int(text) <= RECENT_ROLLOUTS:
        raise BadRequest(f"limit={text!r} must be an int from 1 to {RECENT_ROLLOUTS}")
    return int(text)


def _transcripts(rows: list[RolloutRow]) -> str:
    text = io.StringIO()
    console = Console(
        file=text, width=WIDTH, color_system=None, markup=False, highlight=False, emoji=False
    )
    for row in rows:
        transcript.write(console, row)
    return text.getvalue()


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _failed(status: int, words: str | None, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": words or ""}),
        content_type="application/json",
        headers=headers,
    )
