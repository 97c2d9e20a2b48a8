"""The homeserver's view of one appservice: its registration file, tokens and namespaces."""

import re
from collections.abc import Mapping
from typing import Any

_REQUIRED = ("id", "url", "as_token", "hs_token", "sender_localpart", "namespaces")


class AppService:
    """A registration, read as Synapse or Tuwunel reads it.

    ``registration`` is the parsed YAML. Raises ValueError when a key is missing. ``url`` may be changed later.
    """

    def __init__(self, registration: Mapping[str, Any], domain: str, *, unanchored: bool) -> None:
        missing = [key for key in _REQUIRED if key not in registration]
        if missing:
            raise ValueError(f"registration lacks {', '.join(missing)}")
        self.id: str = registration["id"]
        self.url: str = registration["url"] or ""
        self.as_token: str = registration["as_token"]
        self.hs_token: str = registration["hs_token"]
        self.domain = domain
        self.sender = f"@{registration['sender_localpart']}:{domain}"
        self.ephemeral = bool(
            registration.get("receive_ephemeral")
            or (not unanchored and registration.get("de.sorunome.msc2409.push_ephemeral"))
        )
        self.device_management = bool(registration.get("io.element.msc4190"))
        self.key_counts = bool(registration.get("org.matrix.msc3202"))
        # Tuwunel: case-insensitive and unanchored; Synapse: anchored at the start only
        flags = re.IGNORECASE if unanchored else 0
        anchor = "" if unanchored else r"\A"
        self._patterns: dict[str, list[tuple[re.Pattern[str], bool]]] = {}
        for kind in ("users", "aliases", "rooms"):
            entries = registration["namespaces"].get(kind) or ()
            self._patterns[kind] = [
                (re.compile(f"{anchor}(?:{entry['regex']})", flags), bool(entry.get("exclusive"))) for entry in entries
            ]

    def _matches(self, kind: str, value: str, exclusive: bool = False) -> bool:
        return any(pattern.search(value) for pattern, sole in self._patterns[kind] if sole or not exclusive)

    def owns_user(self, user_id: str) -> bool:
        """Whether the user is the sender or a local user of the namespace."""
        if user_id == self.sender:
            return True
        return user_id.endswith(f":{self.domain}") and self._matches("users", user_id)

    def reserves_user(self, user_id: str) -> bool:
        """Whether nobody else may register this user."""
        return self._matches("users", user_id, exclusive=True)

    def owns_alias(self, alias: str) -> bool:
        """Whether the alias is in the namespace."""
        return self._matches("aliases", alias)

    def reserves_alias(self, alias: str) -> bool:
        """Whether nobody else may use this alias."""
        return self._matches("aliases", alias, exclusive=True)

    def owns_room(self, room_id: str) -> bool:
        """Whether the room id is in the namespace. Ids of version 12 never match a pattern with a server part."""
        return self._matches("rooms", room_id)


def example_registration(domain: str = "test.local", url: str = "") -> dict[str, Any]:
    """A registration like the bridge's own, with test tokens, for tests that do not bring one."""
    server = re.escape(domain)
    return {
        "id": "letta",
        "url": url,
        "as_token": "test-as-token",
        "hs_token": "test-hs-token",
        "sender_localpart": "lettabridge",
        "rate_limited": False,
        "namespaces": {
            "users": [
                {"regex": f"^@letta_.*:{server}$", "exclusive": True},
                {"regex": f"^@lettabridge:{server}$", "exclusive": True},
            ],
            "aliases": [{"regex": f"^#letta_.*:{server}$", "exclusive": True}],
            "rooms": [],
        },
        "receive_ephemeral": True,
        "de.sorunome.msc2409.push_ephemeral": True,
        "org.matrix.msc3202": True,
        "io.element.msc4190": True,
    }
