"""Tuwunel 1.9 for tests, alone or in front of a real Synapse.

``FakeTuwunel`` is Tuwunel's sender towards one appservice, without a homeserver behind it: a test queues rows.

    async with FakeTuwunel(registration, folder / "rows.db") as tuwunel:
        room = tuwunel.room()
        event_id = tuwunel.event(room, {"type": "m.room.message", "sender": …, "content": …})
        await tuwunel.delivered()

Its rules are those of ``FakeHomeserver(flavour="tuwunel")``: both use one pusher. One transaction is in flight; from
idle a row goes alone, then up to 48 rows together; its id is a hash of its rows; a failed one is tried again when a row
is queued, at a ping, and at a restart, and else never.

``TuwunelProxy`` makes a real Synapse behave like Tuwunel: the bridge talks to the proxy, the proxy rewrites what
Tuwunel answers otherwise, and what Synapse pushes goes through FakeTuwunel.

    async with TuwunelProxy(synapse.url, registration, domain, folder, port=port_in_the_registration) as proxy:
        proxy.appservice_url = bridge_url       # and the bridge's homeserver.url is proxy.url
"""

from .fake import FakeTuwunel
from .proxy import TuwunelProxy
from .rewrites import REWRITTEN_ROWS

__all__ = ["REWRITTEN_ROWS", "FakeTuwunel", "TuwunelProxy"]
