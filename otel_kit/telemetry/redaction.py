"""Secrets are taken out before anything leaves the process.

Two rules. A value whose *key* names a secret (``password``, ``authorization``, ``api_key`` ...) is replaced whole; a key is
judged by how it ends, so that ``token_count`` and ``auth.method`` stay. Inside every other text the same judgement goes for
``name=value``, ``name: value`` and ``"name": "value"``, and the commonest *shapes* of a secret are replaced: credentials in
URLs, bearer and basic credentials, JSON web tokens, keys of the large vendors, private keys, and card numbers that pass
Luhn's check. It runs on the exporting thread, but `re` holds the interpreter's lock while it searches: every pattern takes
time in proportion to its text (no run of characters is entered twice), and texts are cut before they are searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import islice
from operator import is_
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, Status

from otel_kit.telemetry.limits import MAX_DEPTH, MAX_ITEMS, Allowance, cut
from otel_kit.telemetry.secrets import REDACTED, SecretFinder

__all__ = ["REDACTED", "Redactor"]


def _tells_nothing(value: Any) -> bool:
    return value is None or isinstance(value, bool) or (isinstance(value, str) and not value)


def _encodable(text: str) -> str:
    """Lone surrogates replaced: one of them makes protobuf refuse the whole request."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


class Redactor:
    """Replaces secrets by ``[redacted]``, and cuts what is too long for telemetry (see `otel_kit.telemetry.limits`).

    Args:
        keys: More words; a key that contains one of them, in any case, counts as naming a secret.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._finder = SecretFinder(keys)

    def text(self, text: str) -> str:
        """The text with every secret-shaped part replaced, cut in the middle when it is too long."""
        clean = self._finder.hide(cut(_encodable(text), keep="both"))
        return text if clean == text else clean

    def value(self, key: str, value: Any) -> Any:
        """The value as it may leave; the very same object when there is nothing to hide or to cut."""
        if _tells_nothing(value):
            return value
        if self._finder.names_secret(key):
            return REDACTED
        return self.text(value) if isinstance(value, str) else self._inside(value, MAX_DEPTH, Allowance())

    def _inside(self, value: Any, depth: int, allowance: Allowance) -> Any:
        if not allowance.take(value):
            return "... [cut]"
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, (int, float)) or value is None:
            return value
        if depth == 0:
            return REDACTED  # deeper than anybody reads, and not looked at
        try:
            if isinstance(value, (bytes, bytearray)):
                text = value.decode("latin-1")  # one character for each byte, and back
                clean = self.text(text)
                return value if clean is text else clean.encode("latin-1")
            if isinstance(value, Mapping):
                return self._mapping(value, depth, allowance)
            if isinstance(value, (Sequence, Set)):
                items = tuple(islice(value, MAX_ITEMS))
                clean_items = tuple(self._inside(item, depth - 1, allowance) for item in items)
                if len(value) > MAX_ITEMS:
                    return (*clean_items, f"... [cut {len(value) - MAX_ITEMS} items] ...")
                return value if all(map(is_, items, clean_items)) else clean_items
            return self.text(str(value))
        except Exception:  # noqa: BLE001 - the application's own classes run here, and may raise what they like
            return f"[unreadable {type(value).__name__}]"

    def _mapping(self, value: Mapping[Any, Any], depth: int, allowance: Allowance) -> Any:
        clean: dict[Any, Any] = {}
        same = True
        for key, item in islice(value.items(), MAX_ITEMS):
            clean_key = self._inside(key, 1, allowance)
            hidden = isinstance(key, str) and not _tells_nothing(item) and self._finder.names_secret(key)
            clean_item = REDACTED if hidden else self._inside(item, depth - 1, allowance)
            clean[clean_key] = clean_item
            same = same and clean_key is key and clean_item is item
        if len(value) > MAX_ITEMS:
            clean["..."] = f"[cut {len(value) - MAX_ITEMS} items]"
            return clean
        return value if same else clean

    def attributes(self, attributes: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The attributes as they may leave; the very same object when there is nothing to hide."""
        if not attributes:
            return attributes
        changed = {}
        for key, value in attributes.items():
            clean = self.value(key, value)
            if clean is not value:
                changed[key] = clean
        if not changed:
            return attributes
        replaced = BoundedAttributes(attributes={**attributes, **changed}, immutable=True, extended_attributes=True)
        replaced.dropped = getattr(attributes, "dropped", 0)
        return replaced

    def span(self, span: ReadableSpan) -> ReadableSpan:
        """The span as it may leave; the very same object when there is nothing to hide."""
        given = span.attributes  # read once: the SDK wraps them anew at every reading
        attributes = self.attributes(given)
        events = [self._event(event) for event in span.events]
        links = [self._link(link) for link in span.links]
        name, description = self.text(span.name), span.status.description
        clean_description = self.text(description) if description else description
        untouched = (
            attributes is given
            and all(new is old for new, old in zip(events, span.events, strict=True))
            and all(new is old for new, old in zip(links, span.links, strict=True))
            and name == span.name
            and clean_description == description
        )
        if untouched:
            return span
        return _RedactedSpan(
            span,
            name=name,
            attributes=attributes,
            events=events,
            links=links,
            status=Status(span.status.status_code, clean_description),
        )

    def _event(self, event: Event) -> Event:
        attributes, name = self.attributes(event.attributes), self.text(event.name)
        untouched = attributes is event.attributes and name is event.name
        return event if untouched else Event(name, attributes, event.timestamp)

    def _link(self, link: Link) -> Link:
        attributes = self.attributes(link.attributes)
        return link if attributes is link.attributes else Link(link.context, attributes)

    def record(self, record: ReadableLogRecord) -> ReadableLogRecord:
        """The log record, redacted in place: by now it belongs to the exporter alone."""
        log = record.log_record
        log.body = self.value("", log.body)
        log.attributes = self.attributes(log.attributes)
        return record

    def metrics(self, data: MetricsData) -> MetricsData:
        """The metrics as they may leave; the very same object when there is nothing to hide."""
        dirty = False
        resources = []
        for resource in data.resource_metrics:
            scopes = []
            for scope in resource.scope_metrics:
                metrics = []
                for metric in scope.metrics:
                    points = [self._point(point) for point in metric.data.data_points]
                    if any(new is not old for new, old in zip(points, metric.data.data_points, strict=True)):
                        dirty = True
                        data_points: Any = replace(metric.data, data_points=points)  # type: ignore[arg-type]
                        metric = replace(metric, data=data_points)
                    metrics.append(metric)
                scopes.append(replace(scope, metrics=metrics))
            resources.append(replace(resource, scope_metrics=scopes))
        return MetricsData(resource_metrics=resources) if dirty else data

    def _point(self, point: Any) -> Any:
        attributes = self.attributes(point.attributes)
        exemplars = [
            exemplar if filtered is exemplar.filtered_attributes else replace(exemplar, filtered_attributes=filtered)
            for exemplar in point.exemplars
            for filtered in (self.attributes(exemplar.filtered_attributes),)
        ]
        if attributes is point.attributes and all(
            new is old for new, old in zip(exemplars, point.exemplars, strict=True)
        ):
            return point
        return replace(point, attributes=attributes, exemplars=exemplars)


class _RedactedSpan(ReadableSpan):
    """A copy that still tells how much the original had dropped."""

    def __init__(
        self, original: ReadableSpan, *, name: str, attributes: Any, events: Any, links: Any, status: Status
    ) -> None:
        super().__init__(
            name=name,
            context=original.context,
            parent=original.parent,
            resource=original.resource,
            attributes=attributes,
            events=events,
            links=links,
            kind=original.kind,
            status=status,
            start_time=original.start_time,
            end_time=original.end_time,
            instrumentation_scope=original.instrumentation_scope,
        )
        self._original = original

    @property
    def dropped_attributes(self) -> int:
        return self._original.dropped_attributes

    @property
    def dropped_events(self) -> int:
        return self._original.dropped_events

    @property
    def dropped_links(self) -> int:
        return self._original.dropped_links
