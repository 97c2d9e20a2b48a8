"""A short soak in every run; ``make soak`` is the long one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .nursery import Nursery
from .soak import soak


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [20_260_131, pytest.param(None, id="random")])
async def test_soak(tmp_path: Path, database_uri: str, processes: Nursery, seed: int | None) -> None:
    """Nothing lost, nothing twice, nothing out of order, over six kills and sixty messages of each seed."""
    chosen = time.time_ns() % 1_000_000 if seed is None else seed
    print(f"seed {chosen}")
    outcome = await soak(tmp_path, database_uri, processes, seed=chosen, kills=6, messages=60, pace=0.06)
    assert outcome.good, f"seed {chosen}: {outcome.trouble} {outcome.verdict.violations}\n{tail(tmp_path)}"
    assert outcome.toll.killed >= 6
    assert outcome.messages >= 60


def tail(folder: Path) -> str:
    """The end of the bridges' log."""
    return "\n".join((folder / "bridge.log").read_text().splitlines()[-60:])
