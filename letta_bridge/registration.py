"""The registration file: what the homeserver is told about the bridge. Everything in it comes from the config."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import Config, yamlfile

_HEADER = (
    "Registration of letta-bridge with the homeserver, made by 'letta-bridge register' from config.yaml.\n"
    "Do not edit it by hand: change config.yaml and make it anew. It holds secrets: keep its mode at 0600, "
    "or give it "
    "to the homeserver's own user and nobody else."
)

_COMMENTS = {
    "id": "The name under which the homeserver knows the bridge. No other appservice may have it.",
    "url": "Where the homeserver reaches the bridge.",
    "as_token": "The bridge's secret towards the homeserver.",
    "hs_token": "The homeserver's secret towards the bridge.",
    "sender_localpart": "The bridge's own user. Tuwunel creates it; on Synapse the bridge does.",
    "rate_limited": "Agents answer many people: no rate limit of the homeserver for them (Tuwunel has none anyway).",
    "namespaces": "Users and room aliases that belong to the bridge alone. Nobody else can take them. "
    "No rooms are claimed: the homeserver sends what happens where one of the users is joined.",
    "receive_ephemeral": "Send typing and read receipts (Tuwunel, and Synapse since the feature became stable).",
    "de.sorunome.msc2409.push_ephemeral": "The same under its older name, for Synapse.",
    "org.matrix.msc3202": "Send device lists and key counts, which end-to-end encryption will need.",
    "io.element.msc4190": "Let the bridge make devices for its users without a login.",
}


def build(config: Config) -> dict[str, Any]:
    """The registration that belongs to ``config``, as plain data."""
    appservice, domain = config.appservice, _literal(config.homeserver.domain)
    prefix = _literal(appservice.puppet_prefix)
    return {
        "id": appservice.id,
        "url": appservice.url,
        "as_token": appservice.as_token,
        "hs_token": appservice.hs_token,
        "sender_localpart": appservice.bot_localpart,
        "rate_limited": False,
        "namespaces": {
            "users": [
                {"regex": f"^@{prefix}.*:{domain}$", "exclusive": True},
                {"regex": f"^@{_literal(appservice.bot_localpart)}:{domain}$", "exclusive": True},
            ],
            "aliases": [{"regex": f"^#{prefix}.*:{domain}$", "exclusive": True}],
            "rooms": [],
        },
        "receive_ephemeral": appservice.ephemeral,
        "de.sorunome.msc2409.push_ephemeral": appservice.ephemeral,
        "org.matrix.msc3202": True,
        "io.element.msc4190": True,
    }


def _literal(text: str) -> str:
    """``text`` as a regex of both Python and Rust that matches only itself."""
    return "".join(f"\\{char}" if char in r".+*?()[]{}^$|\\" else char for char in text)


def dump(registration: Mapping[str, Any], *, comments: bool = True) -> str:
    """The registration as YAML; without comments it is meant for pasting into a chat."""
    if comments:
        return yamlfile.dump(yamlfile.commented(registration, _COMMENTS), _HEADER)
    return yamlfile.dump(yamlfile.commented(registration, {}), "")


def new_token() -> str:
    """A fresh secret of 256 random bits."""
    return secrets.token_urlsafe(32)


def read(path: Path) -> dict[str, Any]:
    """The registration in a file. Raises :class:`~letta_bridge.config.ConfigError`."""
    return yamlfile.read_mapping(path)[0]


def compare(config: Config, path: Path) -> list[str]:
    """What differs between the registration file and the one that belongs to ``config``, in plain words.

    Empty when they agree. Keys that the bridge does not write are no difference. Secrets are not shown.
    Raises :class:`~letta_bridge.config.ConfigError` when the file cannot be read.
    """
    found, wanted = read(path), build(config)
    return [sentence for key in wanted if (sentence := _difference(key, found.get(key), wanted[key]))]


def _difference(key: str, found: object, wanted: object) -> str | None:
    if key == "namespaces":
        return _namespace_difference(found, wanted)
    if found == wanted:
        return None
    if key in ("as_token", "hs_token"):
        return f"{key} is not the one of the configuration" if found else f"{key} is missing"
    if found is None:
        return f"{key} is missing; it should be {_yaml(wanted)}"
    return f"{key} is {_yaml(found)}, but the configuration says {_yaml(wanted)}"


def _namespace_difference(found: object, wanted: Any) -> str | None:
    if not isinstance(found, Mapping):
        return "namespaces is missing"
    for kind in ("users", "aliases"):
        entries = found.get(kind)
        for entry in wanted[kind]:
            if not isinstance(entries, list) or entry not in entries:
                return f"namespaces.{kind} does not have the exclusive entry {entry['regex']}"
    return None


def _yaml(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def tuwunel_toml(config: Config) -> str:
    """The registration as a section of ``tuwunel.toml``."""
    plain = build(config)
    section = f"global.appservice.{plain['id']}"
    rows = [
        f"[{section}]",
        *(f"{key} = {_toml(plain[key])}" for key in ("url", "as_token", "hs_token", "sender_localpart")),
        "rate_limited = false",
        f"receive_ephemeral = {_toml(plain['receive_ephemeral'])}",
        "device_management = true",
        "msc3202_transaction_extensions = true",
    ]
    for kind in ("users", "aliases"):
        for entry in plain["namespaces"][kind]:
            rows += ["", f"[[{section}.{kind}]]", "exclusive = true", f"regex = '{entry['regex']}'"]
    return "\n".join(rows) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def admin_room_message(config: Config) -> str:
    """The message for Tuwunel's admin room that registers the bridge while Tuwunel runs."""
    return f"!admin appservices register\n```yaml\n{dump(build(config), comments=False).strip()}\n```\n"


def example() -> str:
    """The text of ``registration.yaml.example``."""
    from .config.schema import AppserviceConfig, HomeserverConfig, LettaConfig, leaves

    shown = {path: key.example for path, key in leaves()}
    config = Config(
        homeserver=HomeserverConfig(url=shown["homeserver", "url"], domain=shown["homeserver", "domain"]),
        appservice=AppserviceConfig(as_token=shown["appservice", "as_token"], hs_token=shown["appservice", "hs_token"]),
        letta=LettaConfig(url=shown["letta", "url"]),
    )
    return dump(build(config))
