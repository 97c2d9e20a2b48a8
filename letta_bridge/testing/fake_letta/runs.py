"""Routes of runs and steps."""

import re

from aiohttp import web

from . import shapes
from .core import Core
from .messages import items_of
from .sending import replay
from .state import Run, page
from .wire import NO_REDIS, answer, body_of, choice, missing, number, refuse

_ID = re.compile(r"run-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")


class RunRoutes:
    """Handlers under ``/v1/runs/`` and ``/v1/steps/``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def routes(self) -> list[web.RouteDef]:
        one = "/v1/runs/{run_id}"
        return [
            web.get("/v1/runs/", self.listing),
            web.get("/v1/runs/active", self.active),
            web.get(one, self.retrieve),
            web.get(f"{one}/messages", self.messages),
            web.get(f"{one}/steps", self.steps),
            web.get(f"{one}/usage", self.usage),
            web.post(f"{one}/stream", self.stream),
            web.get("/v1/steps/", self.all_steps),
            web.get("/v1/steps/{step_id}", self.step),
        ]

    async def listing(self, request: web.Request) -> web.Response:
        """Newest first. ``after`` means newer in that order and older in the other: clients that page go in circles.

        An unknown cursor is ignored.
        """
        runs = [run for run in self._core.db.runs.values() if _matches(run, request)]
        newest = choice(request, "order", ("desc", "asc")) == "desc"
        places = {name: self._core.db.runs.get(request.query.get(name, "")) for name in ("after", "before")}
        after, before = (run.seq if run is not None else None for run in places.values())
        above, below = (after, before) if newest else (before, after)
        chosen = page(runs, above=above, below=below, limit=number(request, "limit", 100), descending=newest)
        return answer([shapes.run_json(run) for run in chosen])

    async def active(self, request: web.Request) -> web.Response:
        runs = [run for run in self._core.db.runs.values() if run.active and _matches(run, request)]
        return answer([shapes.run_json(run) for run in reversed(runs)])

    async def retrieve(self, request: web.Request) -> web.Response:
        return answer(shapes.run_json(self._run(request)))

    async def messages(self, request: web.Request) -> web.Response:
        run = self._run(request)
        rows = [row for row in self._core.db.history(agent_id=run.agent_id) if row.run_id == run.id]
        if choice(request, "order", ("asc", "desc")) == "desc":
            rows.reverse()
        return answer(items_of(rows[: number(request, "limit", 100)], request))

    async def steps(self, request: web.Request) -> web.Response:
        run = self._run(request)
        model = self._core.db.agents[run.agent_id].model
        return answer([shapes.step_json(step, model) for step in run.steps])

    async def usage(self, request: web.Request) -> web.Response:
        count = sum(not step.failed for step in self._run(request).steps)
        used = {key: value * count for key, value in shapes.USAGE.items()}
        return answer({**used, "prompt_tokens_details": None, "completion_tokens_details": None})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        run = self._run(request)
        body = await body_of(request, optional=True)
        if not run.background:
            refuse(400, "INVALID_ARGUMENT: Run was not created in background mode, so it cannot be retrieved.")
        if not self._core.redis:
            refuse(503, NO_REDIS)
        after, pings = int(body.get("starting_after") or 0), body.get("include_pings") is not False
        return await replay(self._core, request, run, pings=pings, after=after)

    async def all_steps(self, request: web.Request) -> web.Response:
        """Broken on the real server too."""
        refuse(400, "Argument order does not match type typing.Optional[str]; is False of type <class 'bool'>")

    async def step(self, request: web.Request) -> web.Response:
        step = self._core.db.steps.get(request.match_info["step_id"])
        agent = self._core.db.agents.get(step.agent_id) if step is not None else None
        if step is None or agent is None:
            raise missing("Step", request.match_info["step_id"])
        return answer(shapes.step_json(step, agent.model))

    def _run(self, request: web.Request) -> Run:
        run_id = request.match_info["run_id"]
        if not _ID.match(run_id):
            refuse(400, f"INVALID_ARGUMENT: Invalid run ID format: {run_id}. Expected format: 'run-<uuid4>'")
        run = self._core.db.runs.get(run_id)
        if run is None:
            raise missing("Run", run_id)
        return run


def _matches(run: Run, request: web.Request) -> bool:
    query = request.query
    agents = query.getall("agent_id", []) or query.getall("agent_ids", [])
    if agents and run.agent_id not in agents:
        return False
    statuses = query.getall("statuses", [])
    if statuses and run.status not in statuses:
        return False
    if query.get("active", "").lower() == "true" and not run.active:
        return False
    if "background" in query and run.background != (query["background"].lower() == "true"):
        return False
    return all(getattr(run, key) == query[key] for key in ("conversation_id", "stop_reason") if key in query)
