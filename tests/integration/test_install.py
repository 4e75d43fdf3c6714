"""The package as a stranger installs it: a wheel in an empty environment, at both ends of the window of versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from otel_kit.testing import OtlpSink
from tests.integration.conftest import Programs, eventually, free_port

ROOT = Path(__file__).parents[2]

FIVE_LINES = """
import logging
from fastapi import FastAPI
app = FastAPI()
app.get("/")(lambda: logging.getLogger("shop").warning("asked"))
{our_line}
"""


def _lowest() -> str:
    """A constraint for each OpenTelemetry package: the lowest version that we say we take."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    found = re.findall(r"(opentelemetry-[\w-]+)>=([\w.]+)", "\n".join([*project["dependencies"], *extras]))
    return "".join(f"{name}=={version}\n" for name, version in sorted(set(found)))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, built as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    [built] = folder.glob("*.whl")
    return built


def _pip(python: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize("window", ["lowest", "newest"])
def test_five_lines_of_fastapi_send_three_signals_with_our_line_and_without(
    programs: Programs, sink: OtlpSink, wheel: Path, tmp_path: Path, window: str
) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    (tmp_path / "lowest.txt").write_text(_lowest())
    constraint = ["--constraint", str(tmp_path / "lowest.txt")] if window == "lowest" else []
    _pip(python, "install", *constraint, f"{wheel}[fastapi]", "uvicorn")
    installed = _pip(python, "list", "--format", "freeze")
    if window == "lowest":
        assert "opentelemetry-sdk==1.44" in installed
    # Nobody's service gets another framework or a command line with it (uvicorn brings click).
    assert not re.search(r"^(rich|celery|redis|sqlalchemy|grpcio)==", installed, re.MULTILINE | re.IGNORECASE)

    programs.write("ours", FIVE_LINES.format(our_line="import otel_kit; otel_kit.configure('shop')"))
    programs.write("plain", FIVE_LINES.format(our_line=""))
    instrument = str(python.with_name("opentelemetry-instrument"))
    for module, command in (("ours", []), ("plain", [instrument])):
        sink.clear()
        port = free_port()
        serve = [str(python), "-m", "uvicorn", f"{module}:app", "--port", str(port)]
        process = programs.start(*command, *serve, OTEL_SERVICE_NAME="shop")
        eventually(lambda port=port, process=process: _answers(port, process, programs), 30)
        programs.stop(process)
        assert [(span.service, span.name) for span in sink.spans] == [("shop", "GET /")], programs.output(process)
        [record] = [record for record in sink.logs if record.body == "asked"]
        assert record.trace_id == sink.spans[0].trace_id
        assert "http.server.request.duration" in {point.name for point in sink.points}


def _answers(port: int, process: subprocess.Popen[str], programs: Programs) -> bool:
    assert process.poll() is None, programs.output(process)
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    except httpx.ConnectError:
        return False
