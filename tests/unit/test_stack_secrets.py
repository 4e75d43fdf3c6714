"""Grafana's password is made once and read by its owner alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from otel_kit.stack import secrets
from otel_kit.stack.errors import StackError
from otel_kit.stack.secrets import compose_environment, grafana_password_file


def test_a_password_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        path = grafana_password_file(tmp_path / "secrets")
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(path.read_text()) == 32
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_password_stays_the_same(tmp_path: Path) -> None:
    first = grafana_password_file(tmp_path).read_text()
    assert grafana_password_file(tmp_path).read_text() == first
    assert grafana_password_file(tmp_path / "other").read_text() != first


def test_of_two_processes_that_start_at_once_the_first_decides(tmp_path: Path) -> None:
    # Both have seen that there is no file yet.
    secrets._create(tmp_path / "password", "first")
    secrets._create(tmp_path / "password", "second")
    assert (tmp_path / "password").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["password"]


def test_a_password_that_others_can_read_is_refused(tmp_path: Path) -> None:
    grafana_password_file(tmp_path).chmod(0o644)
    with pytest.raises(StackError, match=r"has mode 0644: others can read it"):
        grafana_password_file(tmp_path)


def test_an_empty_password_is_refused(tmp_path: Path) -> None:
    grafana_password_file(tmp_path).write_text("\n")
    with pytest.raises(StackError, match=r"is empty"):
        grafana_password_file(tmp_path)


def test_compose_is_told_where_it_is_and_whose_it_is(tmp_path: Path) -> None:
    given = compose_environment(tmp_path)
    path = grafana_password_file(tmp_path)
    assert given == {"OTEL_KIT_GRAFANA_PASSWORD_FILE": str(path), "OTEL_KIT_GRAFANA_USER": str(os.getuid())}
    assert path.read_text() not in given.values()
