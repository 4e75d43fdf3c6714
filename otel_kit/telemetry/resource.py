"""Who is talking: the resource that every span, point and record carries."""

from __future__ import annotations

import os
import socket
from typing import Any

from opentelemetry.sdk.resources import Resource

from otel_kit import catalogue
from otel_kit._version import __version__
from otel_kit.settings import Settings
from otel_kit.telemetry.redaction import Redactor


def build(settings: Settings, redactor: Redactor) -> Resource:
    """The process's resource: keywords first, then OTEL_RESOURCE_ATTRIBUTES and detectors, then what we find out."""
    asked: dict[str, Any] = {
        catalogue.SERVICE_NAME: settings.service_name,
        catalogue.SERVICE_NAMESPACE: settings.service_namespace,
        catalogue.SERVICE_VERSION: settings.service_version,
        catalogue.ENVIRONMENT: settings.environment,
        catalogue.PROCESS_PID: os.getpid(),
        catalogue.DISTRO_NAME: "otel-kit",
        catalogue.DISTRO_VERSION: __version__,
    }
    found = Resource.create({name: value for name, value in asked.items() if value is not None})
    # contrib#3096: a host name that the deployment states is better than the one a container made up.
    missing = {} if catalogue.HOST_NAME in found.attributes else {catalogue.HOST_NAME: socket.gethostname()}
    attributes = {**found.attributes, **missing}
    return Resource({name: redactor.value(name, value) for name, value in attributes.items()}, found.schema_url)


def adopt_child(*providers: Any) -> None:
    """Give a forked child's telemetry its own process id; the SDK gives it an instance id, and no more."""
    mine = Resource({catalogue.PROCESS_PID: os.getpid()})
    for provider in providers:
        update = getattr(provider, "_update_resource", None)
        if update is not None:
            update(mine)
