"""What is written beside the code agrees with it: examples, reference, links, container files, unit."""

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from letta_bridge import __version__, config, registration
from letta_bridge.cli.exitcodes import MEANING, Exit
from letta_bridge.cli.parser import build_parser
from letta_bridge.commands.groups import TABLE
from letta_bridge.commands.page import page as commands_page
from letta_bridge.config.schema import AppserviceConfig, ShutdownConfig, leaves

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
DEFAULTS = {".".join(path): key.default for path, key in leaves()}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load_yaml(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(read(name))


@pytest.mark.parametrize(
    ("name", "make", "command"),
    [
        ("config.example.yaml", config.example, "example-config"),
        ("registration.yaml.example", registration.example, "example-registration"),
        ("docs/configuration.md", config.reference, "config-reference"),
        ("docs/commands.md", lambda: commands_page(TABLE), "commands-reference"),
    ],
)
def test_generated_files_are_fresh(name: str, make: Any, command: str) -> None:
    assert read(name) == make(), f"run: letta-bridge {command} > {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([^)]+)\)", read("README.md")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= linked


def test_every_key_is_in_the_reference() -> None:
    page = read("docs/configuration.md")
    for path, _ in leaves():
        assert f"`{'.'.join(path)}`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_and_variables_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sections = "|".join({path[0] for path, _ in leaves() if len(path) > 1})
    for name in re.findall(rf"`((?:{sections})\.[a-z_.]+)`", text):
        # `letta.include` names a section; anything ending in a file's suffix is a file
        known = name in DEFAULTS or any(key.startswith(name + ".") for key in DEFAULTS)
        assert known or name.endswith((".py", ".yaml", ".toml")), f"{page.name}: {name}"
    for name in re.findall(r"LETTA_BRIDGE__([A-Z_]*[A-Z])", text):
        if name not in ("SECTION__KEY", "SECTION__KEY_FILE"):
            key = name.lower().replace("__", ".")
            assert key in DEFAULTS or key.removesuffix("_file") in DEFAULTS, f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_pages_name_exist(page: Path) -> None:
    actions = build_parser()._subparsers._group_actions  # type: ignore[union-attr]
    commands: dict[str, Any] = actions[0].choices  # type: ignore[assignment]
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, rest in re.findall(r"(?:letta-bridge|--no-deps bridge) ([a-z][a-z-]+)([^`\n']*)", "\n".join(_code(text))):
        assert name in commands, f"{page.name}: letta-bridge {name}"
        for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest.partition("#")[0]):
            assert flag in commands[name]._option_string_actions, f"{page.name}: letta-bridge {name} {flag}"


def _code(text: str) -> list[str]:
    return [*re.findall(r"```[a-z]*\n(.*?)```", text, re.S), *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]


def test_exit_codes_are_listed() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", read("docs/troubleshooting.md"), re.M)
    listed = {int(code): text.replace("`", "") for code, text in rows}
    assert listed == {int(code): text for code, text in MEANING.items() if code is not Exit.OK}


def test_the_version_is_in_the_changelog() -> None:
    assert f"## {__version__}" in read("CHANGELOG.md")


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))
    for page in PAGES:
        for code in _code(page.read_text(encoding="utf-8")):
            assert set(re.findall(r"^make ([a-z-]+)", code, re.M)) <= targets, page.name


# -- containers


COMPOSE = load_yaml("docker-compose.yml")
SERVICES = COMPOSE["services"]
TUWUNEL = tomllib.loads(read("docker/tuwunel.toml"))["global"]


def test_compose_settings_agree_with_the_code() -> None:
    head = read("docker-compose.yml").partition("name: letta-bridge")[0]
    port = AppserviceConfig.__dataclass_fields__["port"].default
    bridge, tuwunel = (SERVICES[name]["networks"]["matrix"]["ipv4_address"] for name in ("bridge", "tuwunel"))
    assert f"--appservice-url http://{bridge}:{port}" in head
    assert f"--listen 0.0.0.0:{port}" in head
    assert f"--homeserver-url http://{tuwunel}:{TUWUNEL['port']}" in head
    assert head.count("letta-bridge") == 0, "inside the container the entry point is the command"
    grace = float(SERVICES["bridge"]["stop_grace_period"].removesuffix("s"))
    assert grace > ShutdownConfig().drain_s


def test_compose_and_setup_page_tell_the_same_steps() -> None:
    page = re.sub(r"\s+", " ", read("docs/setup.md").replace("\\\n", " "))
    head = read("docker-compose.yml").partition("name: letta-bridge")[0]
    command = re.search(r"docker compose run(?:.*\\\n)+.*", head)
    assert command
    assert re.sub(r"[\s#\\]+", " ", command[0]).strip() in page


def test_compose_names_files_that_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.partition(":")[0]
            if source.startswith("./docker"):
                assert (ROOT / source).is_file()


def test_the_registration_is_mounted_where_tuwunel_looks() -> None:
    (mount,) = [volume for volume in SERVICES["tuwunel"]["volumes"] if isinstance(volume, dict)]
    assert str(Path(mount["target"]).parent) == TUWUNEL["appservice_dir"]
    assert Path(mount["target"]).suffix == ".yaml", "Tuwunel reads nothing else"
    assert Path(mount["source"]).name == "registration.yaml"
    assert mount["bind"]["create_host_path"] is False


def test_tuwunel_has_what_appservices_need() -> None:
    assert TUWUNEL["dns_passthru_appservices"] is True
    assert TUWUNEL["appservice_idle_timeout"] < 75
    assert TUWUNEL["startup_netburst_keep"] == -1
    assert "CHANGE-ME" not in read("docker/tuwunel.toml")


def test_element_knows_the_homeserver_of_the_compose_file() -> None:
    server = json.loads(read("docker/element-config.json"))["default_server_config"]["m.homeserver"]
    assert server["server_name"] in SERVICES["tuwunel"]["environment"]["TUWUNEL_SERVER_NAME"]
    published = SERVICES["tuwunel"]["ports"][0].split(":")[1]
    assert server["base_url"] == f"http://localhost:{published}"


def test_only_loopback_is_published() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_letta_is_the_tested_one_and_only_by_profile() -> None:
    assert SERVICES["letta"]["image"].endswith(":0.16.8")
    assert SERVICES["letta"]["profiles"] == ["letta"]
    assert not SERVICES["letta"].get("ports")


def test_the_image_runs_as_nobody_special_and_is_asked_for_its_health() -> None:
    text = read("Dockerfile")
    port = AppserviceConfig.__dataclass_fields__["port"].default
    assert "USER 1337:1337" in text
    assert f"EXPOSE {port}" in text
    health = re.search(r"http://127\.0\.0\.1:(\d+)(/\S+?)'", text)
    assert health
    assert int(health[1]) == port
    assert f'"{health[2]}"' in read("letta_bridge/matrix/intake.py")
    ends = {word: json.loads(value) for word, value in re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])$", text, re.M)}
    build_parser().parse_args(ends["CMD"])
    assert ends["ENTRYPOINT"] == ["letta-bridge"]
    for check in re.findall(r"HEALTHCHECK.*?CMD (\[.*?\])\n", text, re.S):
        ast.parse(json.loads(check.replace("\\\n", ""))[2])


def test_what_the_image_copies_is_not_ignored() -> None:
    kept = {line.removeprefix("!") for line in read(".dockerignore").splitlines() if line.startswith("!")}
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", read("Dockerfile"), re.M):
        for name in names.split():
            assert name in kept
            assert (ROOT / name).exists()


def test_the_unit_runs_what_exists() -> None:
    text = read("docs/letta-bridge.service")
    command = re.search(r"^ExecStart=\S+/letta-bridge (.+)$", text, re.M)
    assert command
    build_parser().parse_args(command[1].split())
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert stop
    assert float(stop[1]) > ShutdownConfig().drain_s
    codes = re.search(r"^RestartPreventExitStatus=(.+)$", text, re.M)
    assert codes
    assert {int(code) for code in codes[1].split()} == {int(Exit.USAGE), int(Exit.CONFIG)}
