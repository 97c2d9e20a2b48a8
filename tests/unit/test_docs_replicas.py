"""The compose file, the load balancers' configurations and the page for several replicas agree with the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from letta_bridge.config.schema import AppserviceConfig, DatabaseConfig, ShutdownConfig, leaves
from letta_bridge.db.database import Database
from letta_bridge.testing.balancer import HEALTH

ROOT = Path(__file__).parents[2]
DEFAULTS = {".".join(path) for path, _ in leaves()}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load_yaml(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(read(name))


SERVICES = load_yaml("docker-compose.yml")["services"]
OVERLAY = load_yaml("docker-compose.replicas.yml")
MERGED: dict[str, Any] = OVERLAY["services"]
PORT = AppserviceConfig.__dataclass_fields__["port"].default
REPLICAS = ("bridge", "bridge-2")


def address(service: dict[str, Any]) -> str:
    return str(service["networks"]["matrix"]["ipv4_address"])


def backend(text: str) -> set[str]:
    """The replicas that a configuration of HAProxy or nginx names."""
    return set(re.findall(rf"server (?:[\w-]+ )?([\d.]+:{PORT})", text))


def test_the_balancer_stands_where_the_registration_says_and_knows_both_replicas() -> None:
    assert address(MERGED["balancer"]) == address(SERVICES["bridge"]), "the address in the registration"
    replicas = {f"{address(MERGED[name])}:{PORT}" for name in REPLICAS}
    assert len(replicas) == 2
    assert f"{address(MERGED['balancer'])}:{PORT}" not in replicas
    config, page = read("docker/haproxy.cfg"), read("docs/replicas.md")
    assert f"bind :{PORT}" in config
    assert backend(config) == replicas
    assert backend(page) == replicas
    assert f"listen {address(MERGED['balancer'])}:{PORT};" in page


def test_the_page_shows_the_balancer_as_it_is() -> None:
    """Every line of HAProxy's configuration on the page stands in the file."""
    shown = next(block for block in re.findall(r"```\n(.*?)```", read("docs/replicas.md"), re.S) if "httpchk" in block)
    lines = {line.strip() for line in read("docker/haproxy.cfg").splitlines()}
    assert {line.strip() for line in shown.splitlines() if line.strip()} <= lines


def test_health_is_asked_where_the_bridge_answers_it() -> None:
    assert f'"{HEALTH}"' in read("letta_bridge/matrix/intake.py")
    assert f"option httpchk GET {HEALTH}\n" in read("docker/haproxy.cfg")
    assert f"`{HEALTH}`" in read("docs/replicas.md")


def test_replicas_are_alike_but_for_name_and_address() -> None:
    one, two = (dict(MERGED[name]) for name in REPLICAS)
    assert one.pop("hostname") != two.pop("hostname")
    assert one.pop("networks") != two.pop("networks")
    assert one == two
    assert one["image"] == SERVICES["bridge"]["image"]
    assert one["volumes"] == SERVICES["bridge"]["volumes"]
    assert float(one["stop_grace_period"].removesuffix("s")) > ShutdownConfig().drain_s
    for name, value in one["environment"].items():
        assert name.removeprefix("LETTA_BRIDGE__").lower().replace("__", ".") in DEFAULTS
        assert (
            Database(re.sub(r"\$\{[^}]*\}", "secret", value)).describe() == "the PostgreSQL database bridge on postgres"
        )


def test_the_database_is_the_one_that_the_replicas_name() -> None:
    postgres = MERGED["postgres"]["environment"]
    uri = MERGED["bridge"]["environment"]["LETTA_BRIDGE__DATABASE__URI"]
    assert uri.startswith(f"postgresql://{postgres['POSTGRES_USER']}:{postgres['POSTGRES_PASSWORD']}@")
    assert uri.endswith(f"@postgres/{postgres['POSTGRES_DB']}")
    assert set(OVERLAY["volumes"]) == {"postgres"}
    assert not any(service.get("ports") for service in MERGED.values()), "nothing of it is for the outside"


def test_files_are_there_and_the_command_is_the_same_everywhere() -> None:
    assert (ROOT / "docker" / "haproxy.cfg").is_file()
    command = "docker compose -f docker-compose.yml -f docker-compose.replicas.yml up -d"
    assert command in read("docker-compose.replicas.yml")
    assert command in read("docs/replicas.md")


def test_figures_of_the_page() -> None:
    page = read("docs/replicas.md")
    database = DatabaseConfig()
    assert f"`database.lease_s` ({database.lease_s:.0f})" in page
    assert f"`database.beat_s` ({database.beat_s:.0f})" in page
    code = read("letta_bridge/db/database.py") + read("letta_bridge/heartbeat.py") + read("letta_bridge/db/listener.py")
    assert '"min_size": 2, "max_size": 8' in code
    assert "idle_in_transaction_session_timeout = '3s'" in code
    assert "_TRUST = 0.8" in code
    assert "_UNACKNOWLEDGED_MS = 20_000" in code
    limit = AppserviceConfig.__dataclass_fields__["body_limit_mib"].default
    assert f"client_max_body_size {limit}m;" in page
