"""Where the configuration files are: in a source checkout, or inside the installed package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from otel_kit.stack.errors import StackError

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Assets:
    """The folder that holds collector/, backends/, grafana/ and docker-compose.yml."""

    root: Path

    @property
    def collector(self) -> Path:
        """Builder manifest and configuration layers of the collector."""
        return self.root / "collector"

    @property
    def backends(self) -> Path:
        """One folder per backend: its configuration and its Go module pin."""
        return self.root / "backends"

    @property
    def grafana(self) -> Path:
        """Provisioning files, dashboards and runbooks."""
        return self.root / "grafana"

    @property
    def compose_file(self) -> Path:
        """The compose project that the Docker stack runs."""
        return self.root / "docker-compose.yml"


def find(package: Path = _PACKAGE) -> Assets:
    """Find the assets of the ``otel_kit`` package that lies in ``package``.

    A wheel carries them in ``otel_kit/_assets``; in a checkout they lie beside the package.

    Raises:
        StackError: neither place has them.
    """
    for root in (package / "_assets", package.parent):
        if (root / "collector" / "builder.yaml").is_file():
            return Assets(root)
    raise StackError(
        f"The stack's configuration is missing: neither {package / '_assets'} nor {package.parent} "
        "has collector/builder.yaml. Install otel-kit from a wheel or run it from a full checkout."
    )
