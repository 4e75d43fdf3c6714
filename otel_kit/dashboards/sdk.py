"""The one door to grafana-foundation-sdk, a development dependency.

Its classic dashboard builders raise a DeprecationWarning while they are imported, in favour of the v2 schema. Classic
JSON is what Grafana's file provider takes in every supported version, so the warning is silenced here and nowhere else.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import (
        common,
        dashboard,
        logs,
        loki,
        prometheus,
        stat,
        table,
        tempo,
        timeseries,
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as common_model
    from grafana_foundation_sdk.models import dashboard as dashboard_model
    from grafana_foundation_sdk.models import prometheus as prometheus_model
    from grafana_foundation_sdk.models import tempo as tempo_model

__all__ = [
    "JSONEncoder",
    "common",
    "common_model",
    "dashboard",
    "dashboard_model",
    "logs",
    "loki",
    "prometheus",
    "prometheus_model",
    "stat",
    "table",
    "tempo",
    "tempo_model",
    "timeseries",
]
