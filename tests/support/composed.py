"""``compose.yaml`` as Docker Compose understands it: merged, with variables and env files filled in."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from typing import Any

from tests.manifests.tools import find_compose
from tests.support.processes import ROOT

#: What ``make secrets`` makes, as tests see it. The values are unlike anything else, so that a leak is found.
SECRETS = {
    "POSTGRES_PASSWORD": "pg-4f1c",
    "S3_SECRET_KEY": "s3-9a2e",
    "GATEWAY_TOKEN": "token-77d0",
    "GRAFANA_PASSWORD": "gf-b31c",
}


def read(environ: Mapping[str, str], files: tuple[str, ...] = ("compose.yaml",)) -> subprocess.CompletedProcess[str]:
    """Read compose files of the checkout with these variables and no others."""
    program = find_compose(os.environ, lambda line: print(line, flush=True))  # noqa: T201
    argv = [program, *(ROOT / name for name in files)]
    return subprocess.run(argv, env=dict(environ), cwd=ROOT, capture_output=True, text=True, check=False)


@cache
def project(files: tuple[str, ...] = ("compose.yaml",), settings: str | None = None) -> Mapping[str, Any]:
    """Return the whole project, every profile in it. ``settings`` is what SETTINGS names."""
    chosen = {"SETTINGS": settings} if settings else {}
    done = read({**SECRETS, **chosen}, files)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def services(files: tuple[str, ...] = ("compose.yaml",), settings: str | None = None) -> Mapping[str, dict[str, Any]]:
    """Return the services of :func:`project` by name."""
    return project(files, settings)["services"]


def ours(found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return those that run from our own images."""
    return {name: service for name, service in found.items() if service["image"].startswith("flywheel/")}


def seconds(duration: str) -> int:
    """Return compose's duration, such as ``1m15s``, in seconds."""
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert found is not None, duration
    return 60 * int(found[1] or 0) + int(found[2] or 0)
