"""The benchmark works: small rows of it, so that it cannot rot."""

from pathlib import Path

from benchmarks.page import conditions, page
from benchmarks.processes import Child
from benchmarks.results import Line, Report, Rounds, percentile, table
from benchmarks.rows.null import a_null_stage, measure
from benchmarks.stage import DOMAIN, Options, a_floor
from letta_bridge.testing.fake_homeserver import FakeHomeserver


async def test_the_bridge_answers_the_null_homeserver(tmp_path: Path) -> None:
    report = Report()
    async with a_null_stage(Options(tmp_path, quick=True), agents=20) as stage:
        rates = await measure(stage, "null-sqlite", 100, report, {})
    assert all(rate > 0 for rate in rates)
    assert [line.target for line in report.lines] == ["≥ 300/s", "≥ 300/s", ""]
    assert report.remarks[0].startswith("null-sqlite, all at once: 100 messages with ")


async def test_the_naive_floor_answers_with_what_letta_says(tmp_path: Path) -> None:
    async with Child("benchmarks.letta", ["--agents", "1"], tmp_path / "letta") as letta:
        floor = a_floor("naive", tmp_path / "floor", "", letta.said["url"])
        hs = FakeHomeserver(floor.registration_data(), domain=DOMAIN)
        async with hs, floor.child(homeserver=hs.url):
            person = await hs.person("alice")
            puppet = f"@naive_{letta.said['agents'][0].removeprefix('agent-')}:{DOMAIN}"
            room = await person.create_dm(puppet)
            await person.wait_joined(room, puppet, 20)
            await person.send(room, "hello")
            await person.wait_message(room, sender=puppet, text="re: hello", timeout=20)


def test_a_miss_is_named() -> None:
    report = Report({"Machine": "a small one"})
    report.add(Line("latency", "reply", "10 ms", "5 ms", ratio="2.00", target="≤ 1.25", met=False, note="n = 3"))
    report.add(Line("burst", "answered", "10/s", "10/s", ratio="1.00", target="≥ 0.9", met=True))
    text = page(report)
    assert "1 of 2 targets are missed" in text
    assert "- **latency**, reply: 2.00, target ≤ 1.25." in text
    assert "| Machine | a small one |" in text
    assert "MISSED" in table(report.lines)


def test_conditions_name_the_machine() -> None:
    assert "cores" in conditions(quick=True)["Machine"]


def test_percentiles_are_of_all_rounds() -> None:
    found = Rounds([[float(number) for number in range(50)], [float(number) for number in range(50, 100)]])
    assert found.median == 49.5
    assert found.p95 == 94.0
    assert found.spread() == "24.5–74.5"
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
