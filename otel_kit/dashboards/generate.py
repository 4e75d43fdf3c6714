"""Writes ``grafana/``: ``python -m otel_kit.dashboards.generate [DIRECTORY]``.

The files are committed; a test compares them with what this module makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from otel_kit.dashboards import datasources
from otel_kit.dashboards.boards import overview
from otel_kit.dashboards.sdk import JSONEncoder, dashboard_model

#: Where Grafana finds the dashboards, in its container.
DASHBOARDS_DIRECTORY: Final = "/etc/otel-kit/dashboards"

_HEADER: Final = "# Written by `make generate` (otel_kit/dashboards). Do not edit.\n"
_BOARDS: Final = {"overview": overview.build}


def _yaml(content: dict[str, Any]) -> str:
    return _HEADER + yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)


def _provider() -> dict[str, Any]:
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "otel-kit",
                "folder": "otel-kit",
                "type": "file",
                "disableDeletion": True,
                "allowUiUpdates": False,
                "updateIntervalSeconds": 30,
                "options": {"path": DASHBOARDS_DIRECTORY, "foldersFromFilesStructure": False},
            }
        ],
    }


def _plain(board: dashboard_model.Dashboard) -> dict[str, Any]:
    """The board as plain JSON, panels numbered in reading order."""
    content: dict[str, Any] = json.loads(json.dumps(board, cls=JSONEncoder))
    for link in content["links"]:
        # The SDK's only value for it hides the links in a menu.
        del link["placement"]
    number = 0
    for top in content["panels"]:
        for panel in (top, *top.get("panels", ())):
            number += 1
            panel["id"] = number
    return content


def files() -> dict[str, str]:
    """Every generated file: its path below ``grafana/``, with ``/``, and its text."""
    made = {
        "provisioning/datasources/otel-kit.yaml": _yaml(datasources.provisioning()),
        "provisioning/dashboards/otel-kit.yaml": _yaml(_provider()),
    }
    for name, build in _BOARDS.items():
        made[f"dashboards/{name}.json"] = json.dumps(_plain(build()), indent=2, sort_keys=True) + "\n"
    return made


def write(directory: Path) -> None:
    """Write every file below ``directory``."""
    for name, text in files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "grafana"))
