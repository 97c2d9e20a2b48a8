"""``letta-bridge smoke`` against a real Synapse: in the place of the bridge, and beside it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from letta_bridge.testing.fake_letta import FakeLetta
from letta_bridge.testing.stack.bridge import LocalBridge
from letta_bridge.testing.stack.synapse import LocalSynapse
from tests.conftest import ADMIN, DOMAIN

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


async def smoke(bridge: LocalBridge) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "letta_bridge", "smoke", "-c", str(bridge.config), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)


async def is_clean(synapse: LocalSynapse, report: dict[str, Any]) -> None:
    """As anybody sees it: no alias, and a user without a name."""
    (user,) = [line["detail"] for line in report["steps"] if line["step"] == "test user"]
    alias = "#" + user[1:]
    async with aiohttp.ClientSession(f"{synapse.url}/") as http:
        async with http.get(f"_matrix/client/v3/directory/room/{quote(alias)}") as answer:
            assert answer.status == 404
        async with http.get(f"_matrix/client/v3/profile/{quote(user)}") as answer:
            assert "displayname" not in await answer.json()


@pytest.mark.usefixtures("synapse")  # so that Synapse is installed, or the test skipped
async def test_a_real_synapse_does_what_the_bridge_needs(tmp_path: Path) -> None:
    bridge = LocalBridge(tmp_path / "bridge")
    # not the session's, which may hold what other tests have left for their bridges
    server = LocalSynapse(tmp_path / "synapse", domain=DOMAIN, registrations=[bridge.registration])
    async with FakeLetta() as letta:
        await bridge.init(homeserver_url=server.url, domain=DOMAIN, letta_url=letta.url, admin=ADMIN)
        async with server:
            code, report = await smoke(bridge)
            assert code == 0, report
            assert {line["status"] for line in report["steps"]} == {"ok"}, report
            assert [seen for seen in report["observed"] if seen["like"] not in ("synapse", "both", "")] == []
            assert report["software"].startswith("Synapse 1.")
            await is_clean(server, report)
            async with bridge:
                code, report = await smoke(bridge)
            assert code == 0, report
            assert report["mode"] == "beside the running bridge"
            assert [line["step"] for line in report["steps"] if line["status"] != "ok"] == ["receive"]
            await is_clean(server, report)
