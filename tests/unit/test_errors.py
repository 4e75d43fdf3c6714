"""Fingerprints and categories of errors."""

from __future__ import annotations

import re
import socket
import sqlite3

import pytest

from otel_kit.jobs.errors import category, fingerprint, type_name


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def _raised_elsewhere(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_the_same_fault_has_the_same_fingerprint_whatever_the_message() -> None:
    assert fingerprint(_raised(ValueError("order 1"))) == fingerprint(_raised(ValueError("order 2")))


def test_another_type_or_another_place_is_another_fault() -> None:
    assert fingerprint(_raised(ValueError("x"))) != fingerprint(_raised(KeyError("x")))
    assert fingerprint(_raised(ValueError("x"))) != fingerprint(_raised_elsewhere(ValueError("x")))


def test_a_fingerprint_is_twelve_hex_digits() -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", fingerprint(ValueError("never raised")))


def test_frames_of_libraries_do_not_count() -> None:
    import json

    def parse(text: str) -> Exception:
        try:
            json.loads(text)
        except ValueError as caught:
            return caught
        raise AssertionError

    # Two depths inside the library, one place of ours.
    assert fingerprint(parse("{")) == fingerprint(parse('{"a": [1, }'))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "timeout"),
        (ConnectionRefusedError(), "network"),
        (socket.gaierror(), "network"),
        (sqlite3.OperationalError(), "database"),
        (ValueError(), "validation"),
        (PermissionError(), "permission"),
        (MemoryError(), "resource"),
        (ZeroDivisionError(), "code"),
        (RuntimeError(), "code"),
    ],
)
def test_a_category_says_where_to_look(error: Exception, expected: str) -> None:
    assert category(error) == expected


def test_a_type_is_qualified_unless_built_in() -> None:
    assert type_name(ValueError()) == "ValueError"
    assert type_name(sqlite3.OperationalError()) == "sqlite3.OperationalError"
