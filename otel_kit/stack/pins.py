"""What the native stack is built from: one part per binary, and the key under which a built part is cached."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from otel_kit.stack.assets import Assets

# -s -w: no symbol table and no DWARF, a third off the size. -trimpath and no VCS stamp: the same binary on every machine.
GO_FLAGS = ("-trimpath", "-buildvcs=false", "-ldflags=-s -w")


@dataclass(frozen=True)
class Edit:
    """A correction to one file of a module that a part is made of, for a fault that its pinned version still has.

    Attributes:
        module: the Go module.
        file: the file, relative to the module.
        before: where it goes; stands there exactly once, or the build fails.
        text: what is put there, in front of ``before``.
    """

    module: str
    file: str
    before: str
    text: str


@dataclass(frozen=True)
class Part:
    """One binary of the stack.

    Attributes:
        name: what the part is called on the command line and in messages; also the binary's file name.
        source: folder of its pin files, relative to the assets.
        package: what ``go build`` builds in that folder.
        pin_files: the files that decide what comes out; their content is the cache key.
        tags: Go build tags.
        expected_seconds: a cold build on 2 cores (measured 2026-11, modules downloaded within that time).
        server: started by ``stack up``; otherwise a tool for checks.
        edits: corrections to the modules.
    """

    name: str
    source: str
    package: str
    pin_files: tuple[str, ...] = ("go.mod", "go.sum")
    tags: str = ""
    expected_seconds: int = 60
    server: bool = True
    edits: tuple[Edit, ...] = ()

    def key(self, assets: Assets) -> str:
        """16 hex digits over the pin files, the corrections, the build flags and the platform."""
        digest = hashlib.sha256()
        identity = (self.name, self.package, self.tags, *GO_FLAGS, platform.system(), platform.machine())
        for text in identity:
            digest.update(text.encode() + b"\0")
        for name in self.pin_files:
            digest.update(name.encode() + b"\0" + (assets.root / self.source / name).read_bytes() + b"\0")
        for edit in self.edits:
            digest.update("\0".join((edit.module, edit.file, edit.before, edit.text)).encode() + b"\0")
        return digest.hexdigest()[:16]


# Up to 0.155 the collector starts its components in an order that is right for each signal alone. The one OTLP server of all
# three listens as soon as the first signal is ready, and what it takes meanwhile meets another signal's queue while that is
# still reading what a crash has left: either overwrites the other, and what was answered 200 is lost
# (opentelemetry-collector#15485, corrected in 0.156 by starting receivers last).
RECEIVERS_LAST = Edit(
    "go.opentelemetry.io/collector/service",
    "internal/graph/graph.go",
    before="\t// Start in reverse topological order so that downstream components\n",
    text="""\
	var receivers, others []graph.Node
	for _, node := range nodes {
		if _, ok := node.(*receiverNode); ok {
			receivers = append(receivers, node)
		} else {
			others = append(others, node)
		}
	}
	nodes = append(receivers, others...) // started from the end

""",
)
COLLECTOR = Part(
    "otelcol-kit", "collector", ".", pin_files=("builder.yaml",), expected_seconds=280, edits=(RECEIVERS_LAST,)
)
TEMPO = Part(
    "tempo",
    "backends/tempo",
    ".",
    pin_files=("go.mod", "go.sum", "main.go", "edge.go"),
    # The assembler version of parquet-go's hash does not link with today's Go (invalid reference to runtime.aeskeysched).
    tags="purego",
    expected_seconds=180,
)
PROMETHEUS = Part(
    "prometheus",
    "backends/prometheus",
    "github.com/prometheus/prometheus/cmd/prometheus",
    # Service discovery of a dozen clouds is most of Prometheus's size, and this one has static targets.
    tags="remove_all_sd",
    expected_seconds=150,
)
LOKI = Part("loki", "backends/loki", "github.com/grafana/loki/v3/cmd/loki", expected_seconds=400)
ALERTMANAGER = Part(
    "alertmanager",
    "backends/alertmanager",
    "github.com/prometheus/alertmanager/cmd/alertmanager",
    expected_seconds=60,
)
PROMTOOL = Part(
    "promtool",
    "backends/prometheus",
    "github.com/prometheus/prometheus/cmd/promtool",
    tags="remove_all_sd",
    expected_seconds=100,
    server=False,
)
AMTOOL = Part(
    "amtool",
    "backends/alertmanager",
    "github.com/prometheus/alertmanager/cmd/amtool",
    expected_seconds=10,
    server=False,
)

PARTS = (COLLECTOR, TEMPO, PROMETHEUS, LOKI, ALERTMANAGER, PROMTOOL, AMTOOL)
SERVERS = tuple(part for part in PARTS if part.server)


def builder_module(assets: Assets) -> str:
    """The OpenTelemetry Collector Builder, at the version of the distribution that builder.yaml describes."""
    manifest = yaml.safe_load((assets.collector / "builder.yaml").read_text())
    return f"go.opentelemetry.io/collector/cmd/builder@v{manifest['dist']['version']}"


def required_go(assets: Assets) -> tuple[int, int, int]:
    """The newest Go version that any pin asks for, as (major, minor, patch)."""
    return max(_go_line(path) for path in sorted(assets.backends.glob("*/go.mod")))


def _go_line(go_mod: Path) -> tuple[int, int, int]:
    match = re.search(r"^go (\d+)\.(\d+)(?:\.(\d+))?", go_mod.read_text(), re.MULTILINE)
    if match is None:
        return (0, 0, 0)
    return int(match[1]), int(match[2]), int(match[3] or 0)
