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
from functools import lru_cache
from itertools import islice
from operator import is_
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, Status

from otel_kit.telemetry.limits import MAX_DEPTH, MAX_ITEMS, MAX_KEY, Allowance, cut
from otel_kit.telemetry.plain import encodable, number, text_of
from otel_kit.telemetry.secrets import REDACTED, SecretFinder

__all__ = ["REDACTED", "Redactor", "SpanCopy"]


def _tells_nothing(value: Any) -> bool:
    return value is None or isinstance(value, bool) or (type(value) is str and not value)


def _kept(container: Any) -> int:
    """How many of its items are kept: with the mark as many as are left alone, so that a second pass cuts nothing more."""
    length = len(container)
    return length if length <= MAX_ITEMS else MAX_ITEMS - 1


class Redactor:
    """Replaces secrets by ``[redacted]``, and cuts what is too long for telemetry (see `otel_kit.telemetry.limits`).

    Args:
        keys: More words; a key that contains one of them, in any case, counts as naming a secret.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._finder = SecretFinder(keys)
        # Keys are few and repeat; one of a megabyte must not stay in the cache.
        self._clean_short_key = lru_cache(maxsize=4096)(self._clean_key)

    def key(self, key: Any) -> str:
        """An attribute's key as it may leave, cut when it is longer than any name."""
        return self._clean_short_key(key) if type(key) is str and len(key) <= MAX_KEY else self._clean_key(key)

    def _clean_key(self, key: Any) -> str:
        text = key if type(key) is str else text_of(key)
        clean = self._finder.hide(encodable(cut(text, MAX_KEY)))
        return text if clean == text else clean

    def text(self, text: str) -> str:
        """The text with every secret-shaped part replaced, cut in the middle when it is too long."""
        if type(text) is not str:
            text = text_of(text)
        clean = self._finder.hide(encodable(cut(text, keep="both")))
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
        kind = type(value)
        if isinstance(value, str):
            return self.text(value)
        if kind is int:
            return number(value)
        if kind is float or kind is bool or value is None:
            return value
        if isinstance(value, int):
            return number(value)
        if isinstance(value, float):
            return float.__float__(value)
        if depth == 0:
            return REDACTED  # deeper than anybody reads, and not looked at
        try:
            if isinstance(value, (bytes, bytearray)):
                raw = value if kind is bytes else bytes(value)
                text = raw.decode("latin-1")  # one character for each byte, and back
                clean = self.text(text)
                return raw if clean is text else clean.encode("latin-1")
            if isinstance(value, Mapping):
                return self._mapping(value, depth, allowance)
            if isinstance(value, (Sequence, Set)):
                excess = len(value) - _kept(value)
                items = tuple(islice(value, _kept(value)))
                clean_items = tuple(self._inside(item, depth - 1, allowance) for item in items)
                if excess:
                    return (*clean_items, f"... [cut {excess} items] ...")
                return value if all(map(is_, items, clean_items)) else clean_items
            return self.text(str(value))
        except Exception:  # noqa: BLE001 - the application's own classes run here, and may raise what they like
            return f"[unreadable {type(value).__name__}]"

    def _mapping(self, value: Mapping[Any, Any], depth: int, allowance: Allowance) -> Any:
        clean: dict[Any, Any] = {}
        same = True
        excess = len(value) - _kept(value)
        for key, item in islice(value.items(), _kept(value)):
            allowance.take(key)
            clean_key = self.key(key)
            hidden = isinstance(key, str) and not _tells_nothing(item) and self._finder.names_secret(key)
            clean_item = REDACTED if hidden else self._inside(item, depth - 1, allowance)
            clean[clean_key] = clean_item
            same = same and clean_key is key and clean_item is item
        if excess:
            clean["..."] = f"[cut {excess} items]"
            return clean
        return value if same else clean

    def attributes(self, attributes: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The attributes as they may leave; the very same object when there is nothing to hide."""
        if not attributes:
            return attributes
        changed: dict[str, Any] = {}
        renamed: dict[str, str] = {}
        for key, value in attributes.items():
            clean, clean_key = self.value(key, value), self.key(key)
            if clean is not value:
                changed[key] = clean
            if clean_key is not key:
                renamed[key] = clean_key
        if not changed and not renamed:
            return attributes
        kept = {renamed.get(key, key): changed.get(key, value) for key, value in attributes.items()}
        replaced = BoundedAttributes(attributes=kept, immutable=True, extended_attributes=True)
        replaced.dropped = getattr(attributes, "dropped", 0) + len(attributes) - len(kept)
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
            and name is span.name
            and clean_description is description
        )
        if untouched:
            return span
        return SpanCopy(
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
        log.event_name = self.text(log.event_name) if log.event_name else log.event_name
        log.severity_text = self.text(log.severity_text) if log.severity_text else log.severity_text
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
                    description = self.text(metric.description or "")
                    if description != (metric.description or ""):
                        dirty = True
                        metric = replace(metric, description=description)
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


class SpanCopy(ReadableSpan):
    """A copy with other parts, by their names, that still tells how much the original had dropped."""

    def __init__(self, original: ReadableSpan, **parts: Any) -> None:
        same = {
            "name": original.name,
            "context": original.context,
            "parent": original.parent,
            "resource": original.resource,
            "kind": original.kind,
            "start_time": original.start_time,
            "end_time": original.end_time,
            "instrumentation_scope": original.instrumentation_scope,
        }
        super().__init__(**{**same, **parts})
        # Not the original itself: its name may be what is too long to be held.
        self._dropped = (original.dropped_attributes, original.dropped_events, original.dropped_links)

    @property
    def dropped_attributes(self) -> int:
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        return self._dropped[2]
