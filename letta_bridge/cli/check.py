"""``letta-bridge check``: is everything in place, and if not, what to do."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

import aiohttp

from .. import __version__
from ..config import ConfigError
from .checks_homeserver import check_namespaces, check_ping, check_token, check_versions
from .checks_letta import check_letta
from .checks_local import check_config, check_database, check_modes, check_port, check_registration
from .checkup import Checkup, Finding, Status, fail
from .exitcodes import Exit
from .options import add_config, add_registration, load_config, registration_path

Check = Callable[[Checkup], Awaitable[list[Finding]]]
CHECKS: tuple[Check, ...] = (
    check_config,
    check_registration,
    check_modes,
    check_port,
    check_database,
    check_versions,
    check_token,
    check_namespaces,
    check_ping,
    check_letta,
)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "check",
        help="check configuration, homeserver, database and Letta",
        description="Checks everything the bridge needs and says what to do about what is wrong. Works while the "
        "bridge runs and while it does not. Opens the database like 'run' does, and so brings its tables up "
        "to date.",
    )
    add_config(parser)
    add_registration(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    show: Callable[[Finding], None] = (lambda finding: None) if options.json else _print
    findings = asyncio.run(_examine(options, show))
    code = next((finding.code for finding in findings if finding.status is Status.FAIL), Exit.OK)
    if options.json:
        found = [finding.as_json() for finding in findings]
        summary = {"ok": code is Exit.OK, "exit_code": int(code), "version": __version__, "findings": found}
        json.dump(summary, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        print(_conclusion(findings))
    return code


async def _examine(options: argparse.Namespace, show: Callable[[Finding], None]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        config = load_config(options)
    except ConfigError as error:
        remedy = "correct it; 'letta-bridge config-reference' describes every key"
        findings = [fail("config", Exit.CONFIG, str(problem), remedy) for problem in error.problems]
        for finding in findings:
            show(finding)
        return findings
    async with aiohttp.ClientSession() as session:
        checkup = Checkup(config, registration_path(options), session)
        for check in CHECKS:
            for finding in await check(checkup):
                findings.append(finding)
                show(finding)
    return findings


def _print(finding: Finding) -> None:
    print(f"{finding.status.value:<5} {finding.check}: {finding.text}", flush=True)
    if finding.remedy:
        print(f"        → {finding.remedy}", flush=True)


def _conclusion(findings: list[Finding]) -> str:
    failed = sum(finding.status is Status.FAIL for finding in findings)
    warned = sum(finding.status is Status.WARN for finding in findings)
    if failed:
        return f"\n{failed} failed. The bridge cannot do its work before that is put right."
    return "\nThe bridge can run." + (f" {warned} warning{'s' * (warned > 1)}." if warned else "")
