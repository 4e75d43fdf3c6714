"""Where the parts of a running stack answer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from otel_kit.stack.errors import StackError
from otel_kit.stack.settings import Ports, StackSettings

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Endpoints:
    """URLs without a trailing slash (``otlp_grpc`` too: with http://, as OTEL_EXPORTER_OTLP_ENDPOINT wants it)."""

    otlp_http: str
    otlp_grpc: str
    tempo: str
    prometheus: str
    loki: str
    collector_health: str
    collector_metrics: str
    alertmanager: str | None = None
    grafana: str | None = None

    @classmethod
    def native(cls, ports: Ports) -> Endpoints:
        """Those of the native stack on these ports."""
        return cls(
            otlp_http=f"http://{_HOST}:{ports.otlp_http}",
            otlp_grpc=f"http://{_HOST}:{ports.otlp_grpc}",
            tempo=f"http://{_HOST}:{ports.tempo}",
            prometheus=f"http://{_HOST}:{ports.prometheus}",
            loki=f"http://{_HOST}:{ports.loki}",
            collector_health=f"http://{_HOST}:{ports.collector_health}",
            collector_metrics=f"http://{_HOST}:{ports.collector_metrics}",
            alertmanager=f"http://{_HOST}:{ports.alertmanager}",
        )

    @classmethod
    def docker(cls, ports: Ports) -> Endpoints:
        """Those that docker-compose.yml publishes on this machine, on these ports."""
        return cls(
            otlp_http=f"http://{_HOST}:{ports.otlp_http}",
            otlp_grpc=f"http://{_HOST}:{ports.otlp_grpc}",
            tempo=f"http://{_HOST}:{ports.tempo}",
            prometheus=f"http://{_HOST}:{ports.prometheus}",
            loki=f"http://{_HOST}:{ports.loki}",
            collector_health=f"http://{_HOST}:{ports.collector_health}",
            collector_metrics=f"http://{_HOST}:{ports.collector_metrics}",
            grafana=f"http://{_HOST}:{ports.grafana}",
        )

    @classmethod
    def of_running(cls, settings: StackSettings | None = None) -> Endpoints:
        """Those of the stack that `otel-kit stack up` has started.

        Raises:
            StackError: none is running.
        """
        state = State.load(settings or StackSettings.from_env())
        if state is None:
            raise StackError("No stack is running: start one with `otel-kit stack up`.")
        return state.endpoints


@dataclass(frozen=True)
class State:
    """What is running, as written by ``stack up``: ``engine`` is ``native`` or ``docker``."""

    engine: str
    endpoints: Endpoints

    @staticmethod
    def _path(settings: StackSettings) -> Path:
        return settings.data_dir / "run" / "stack.json"

    def save(self, settings: StackSettings) -> None:
        """Write the state file, whole or not at all."""
        path = self._path(settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2))
        temporary.replace(path)

    @classmethod
    def load(cls, settings: StackSettings) -> State | None:
        """Read the state file; None when nothing was started."""
        try:
            fields = json.loads(cls._path(settings).read_text())
            return cls(fields["engine"], Endpoints(**fields["endpoints"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(
                f"{cls._path(settings)} is not readable ({error}); remove it and start the stack again."
            ) from error

    @classmethod
    def clear(cls, settings: StackSettings) -> None:
        """Forget the state: nothing is running any more."""
        cls._path(settings).unlink(missing_ok=True)
