"""kubectl, as people use it: what it is told, what it says, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

#: Seconds after which an answer is not awaited any more. Rollouts have their own.
_TIMEOUT_S = 120.0

NAMESPACE = "flywheel"


class KubectlError(Exception):
    """kubectl ended with an error; the message is what it said."""


class Kubectl:
    """kubectl against one API server, as one user. Call it with the words that one would type."""

    def __init__(self, program: str, kubeconfig: Path, cache: Path, namespace: str = NAMESPACE) -> None:
        self._argv = (program, f"--cache-dir={cache}", f"--namespace={namespace}")
        self._env = {**os.environ, "KUBECONFIG": str(kubeconfig)}

    def __call__(self, *words: str, given: str | None = None) -> str:
        """Return what it prints for these words, ``given`` on its standard input. Raises KubectlError."""
        return self.said(*words, given=given)[0]

    def said(self, *words: str, given: str | None = None) -> tuple[str, str]:
        """Return what it prints, and the warnings beside it. Raises KubectlError."""
        done = subprocess.run(
            (*self._argv, *words), env=self._env, input=given or "",
            capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode:
            raise KubectlError(done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}")
        return done.stdout.strip(), done.stderr.strip()

    def start(self, *words: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a kubectl that goes on, what it prints written to ``output``. Whoever starts it stops it."""
        with output.open("wb") as file:
            return subprocess.Popen(
                (*self._argv, *words), env=self._env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def refusal(self, *words: str, given: str | None = None, what: str | None = None) -> str:
        """Return why it refuses these words. Raises AssertionError, naming ``what`` was asked, when it does not."""
        try:
            done = self(*words, given=given)
        except KubectlError as error:
            return str(error)
        raise AssertionError(f"{what or ' '.join(words)}: not refused: {done}")

    def json(self, *words: str, given: str | None = None) -> dict[str, Any]:
        """Return its answer as JSON. Raises KubectlError."""
        return json.loads(self(*words, "-o", "json", given=given))

    def items(self, kind: str, *words: str) -> list[dict[str, Any]]:
        """Return the resources of a kind."""
        return self.json("get", kind, *words)["items"]

    def one(self, kind: str, name: str, *words: str) -> dict[str, Any]:
        """Return one resource. Raises KubectlError where there is none."""
        return self.json("get", kind, name, *words)

    def apply(self, resources: Iterable[Mapping[str, Any]], *words: str) -> str:
        """Apply resources as their fields' owner; return what it says. Raises KubectlError."""
        return self("apply", "--server-side", "-f", "-", *words, given=documents(resources))


def documents(resources: Iterable[Mapping[str, Any]]) -> str:
    """Return resources as one YAML stream."""
    return yaml.safe_dump_all(list(resources), sort_keys=False)
