"""How long an admin waits for an agent that was asked for in Matrix: on a real Synapse, with a real Letta."""

from __future__ import annotations

import json
import secrets
from contextlib import AsyncExitStack

from letta_bridge.testing.person import Person
from letta_bridge.testing.stack.install import NotPossibleHere, ensure
from letta_bridge.testing.stack.letta_server import LocalLetta
from letta_bridge.testing.stack.models import ModelServer
from letta_bridge.testing.stack.postgres import LocalPostgres
from letta_bridge.testing.stack.process import free_port
from letta_bridge.testing.stack.synapse import LocalSynapse
from letta_bridge.testing.summoning import percentile, summon_times

from ..processes import BenchedBridge, Watch
from ..results import Line, Report
from ..stage import DOMAIN, Options, bridge_settings

_SUMMONS = 40
_TARGET = 5.0


async def summon(options: Options, report: Report) -> None:
    """From the admin's request until their client shows the report with the link to the room, one after the other."""
    try:
        ensure("letta")
    except NotPossibleHere as reason:
        why = str(reason).partition("\n")[0]
        report.add(Line("summon", "an agent asked for in Matrix", "–", target="≤ 5 s", met=False, note=why))
        return
    folder = options.folder
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(LocalPostgres())
        model = await stack.enter_async_context(ModelServer(folder / "model"))
        letta = await stack.enter_async_context(LocalLetta(folder / "letta", postgres, model.provider))
        mine, port = folder / "bridge", free_port()
        admin = f"@chief:{DOMAIN}"
        settings = bridge_settings(mine) | {"permissions": json.dumps({admin: "admin"}), "management.rooms": "false"}
        bridge = BenchedBridge(mine, watch=Watch(options.profile), settings=settings)
        await bridge.init(homeserver_url=f"http://127.0.0.1:{port}", domain=DOMAIN, letta_url=letta.url, admin=admin)
        synapse = await stack.enter_async_context(
            LocalSynapse(folder / "synapse", domain=DOMAIN, registrations=[bridge.registration], port=port)
        )
        await stack.enter_async_context(bridge)
        account = await synapse.register("chief")
        person = await stack.enter_async_context(Person(synapse.url, account.user_id, account.access_token))
        room = await person.create_dm(f"@lettabridge:{DOMAIN}")
        await person.wait_member(room, f"@lettabridge:{DOMAIN}")
        names = [f"Summoned-{secrets.token_hex(3)}" for _ in range(10 if options.quick else _SUMMONS)]
        times = await summon_times(person, room, names)
    p95 = percentile(times, 0.95)
    report.add(
        Line(
            "summon",
            f"{len(times)} agents asked for in Matrix, real Letta: 95 %",
            f"{p95:.2f} s",
            target="≤ 5 s",
            met=p95 <= _TARGET,
            note=f"median {percentile(times, 0.5):.2f} s, longest {max(times):.2f} s",
        )
    )
