"""What is written about metrics agrees with the metrics: the page, its alerts, and the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from letta_bridge.config.schema import MetricsConfig
from letta_bridge.web.health import CHECKS
from letta_bridge.web.metrics import MetricsServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "grafana/letta-bridge.json").read_text(encoding="utf-8"))
METRICS = {one.name: one for one in MetricsServer("127.0.0.1", 0, "x").catalogue()}
OF_THE_SERVER = {"job", "instance"}
"""Labels that Prometheus adds to everything that it scrapes."""


def series() -> dict[str, set[str]]:
    """Every name that a query can use, with its labels."""
    found: dict[str, set[str]] = {}
    for one in METRICS.values():
        labels = set(one.labels) | OF_THE_SERVER
        if one.kind == "histogram":
            found |= {f"{one.name}_sum": labels, f"{one.name}_count": labels, f"{one.name}_bucket": labels | {"le"}}
        else:
            found[one.name] = labels
    return found


SERIES = series() | {"up": OF_THE_SERVER}  # which Prometheus makes itself


def check(query: str, legend: str = "") -> None:
    """A query names metrics that there are, and labels that they have."""
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}"), query
    names = set(re.findall(r"\b(?:letta_bridge|process)_[a-z_]+", query))
    assert names, query
    assert names <= set(SERIES), f"{names - set(SERIES)} in {query}"
    common = set.intersection(*(SERIES[name] for name in names))
    for name, matchers in re.findall(r"([a-z_]+)\{([^}]*)\}", query):
        used = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)\"", matchers))
        assert used <= SERIES[name], f"{name} has no {used - SERIES[name]}"
    grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", query) for label in by.split(",")}
    assert grouped <= common, query
    shown = set(re.findall(r"\{\{\s*([a-z_]+)\s*\}\}", legend))
    kept = grouped if grouped or re.search(r"\b(sum|max|min|count|histogram_quantile)\b", query) else common
    assert shown <= kept, f"{legend} over {query}"


def test_every_metric_is_on_the_page_as_it_is() -> None:
    rows = re.findall(r"^\| `((?:letta_bridge|process)_[a-z_]+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.M)
    assert [row[0] for row in rows] == list(METRICS), "one row for each, in the order of their names"
    for name, kind, labels, text in rows:
        one = METRICS[name]
        assert kind == one.kind, name
        assert tuple(re.findall(r"`([a-z_]+)`", labels)) == one.labels, name
        assert text == one.text, name


def test_the_page_names_the_paths_the_checks_and_the_defaults() -> None:
    intake = (ROOT / "letta_bridge/matrix/intake.py").read_text(encoding="utf-8")
    for path in set(re.findall(r"/_matrix/mau/[a-z]+", PAGE)) | set(re.findall(r"/_matrix/mau/[a-z]+", intake)):
        assert f"`{path}`" in PAGE and f'"{path}"' in intake, path
    for name in CHECKS:
        assert f'"{name}"' in PAGE
    assert f"port: {MetricsConfig().port}" in PAGE
    assert f'"127.0.0.1:{MetricsConfig().port}"' in PAGE


def blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.split(":")[0].splitlines()[0])
def test_examples_are_yaml(block: str) -> None:
    assert isinstance(YAML(typ="safe", pure=True).load(block), dict)


def alerts() -> list[dict[str, Any]]:
    (block,) = [block for block in blocks() if "alert:" in block]
    return list(YAML(typ="safe", pure=True).load(block)["groups"][0]["rules"])


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alerts_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    check(rule["expr"])
    assert rule["annotations"]["summary"]


def test_actions_that_alerts_and_the_page_name_are_in_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "letta_bridge").rglob("*.py"))
    named = re.findall(r"`?action=([a-z_]+(?:, [a-z]+_[a-z_]+)*)", PAGE)
    for action in {name for group in named for name in group.split(", ")}:
        assert f'"action": "{action}"' in code, action


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel


@pytest.mark.parametrize("panel", list(panels()), ids=lambda panel: panel["title"])
def test_every_panel_asks_for_what_there_is(panel: dict[str, Any]) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        check(target["expr"], target["legendFormat"])
        assert 'instance=~"$instance"' in target["expr"]


def test_the_dashboard_shows_every_metric_of_the_bridge() -> None:
    asked = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    for name in METRICS:
        assert re.search(rf"\b{name}(?:_bucket|_count|_sum)?\b", asked) or name == "process_virtual_memory_bytes", name


def test_the_dashboard_is_laid_out_and_has_its_variables() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    names = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(names) == ["datasource", "job", "instance"]
    assert names["datasource"]["type"] == "datasource"
    for variable in list(names.values())[1:]:
        metric = re.match(r"label_values\(([a-z_]+)", variable["query"]["query"])
        assert metric and metric[1] in SERIES
