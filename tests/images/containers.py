"""Runs a service of ``compose.yaml`` from its image with podman: what compose says, and nothing more."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from deploy.local.supervisor import die_with_parent
from tests.images.tools import Engine
from tests.support.composed import seconds
from tests.support.world import unique

#: Generous: nothing waits this long unless something is wrong.
HEALTHY_WITHIN_S, END_WITHIN_S = 300.0, 300.0

#: Of a service, what concerns Docker's own network, registry, supervision and logs, and what is read elsewhere.
_ELSEWHERE = frozenset(
    {
        "command", "depends_on", "env_file", "healthcheck", "image", "logging", "networks", "ports", "profiles",
        "pull_policy", "restart",
    }
)  # fmt: skip


def options(service: Mapping[str, Any], volume: Callable[[str], str]) -> Iterator[str]:
    """Yield podman's options for a service; ``volume`` gives a named volume's name here.

    Raises AssertionError for a key that is not understood, so that nothing in the file goes untested silently.
    """
    for key, value in service.items():
        match key:
            case "user":
                yield from ("--user", value)
            case "read_only":
                if value:
                    yield from ("--read-only", "--read-only-tmpfs=false")
            case "cap_drop":
                yield from (f"--cap-drop={name}" for name in value)
            case "security_opt":
                yield from (f"--security-opt={name.removesuffix(':true')}" for name in value)
            case "pids_limit":
                yield f"--pids-limit={value}"
            case "tmpfs":
                yield from (f"--tmpfs={mount}" for mount in value)
            case "mem_limit":
                yield f"--memory={value}"
            case "stop_grace_period":
                yield f"--stop-timeout={seconds(value)}"
            case "environment":
                yield from (f"--env={name}={text}" for name, text in value.items())
            case "volumes":
                for mount in value:
                    assert mount["type"] == "volume", mount
                    yield f"--volume={volume(mount['source'])}:{mount['target']}"
            case "entrypoint":
                if value:
                    yield f"--entrypoint={value[0]}"
            case _:
                assert key in _ELSEWHERE, f"not understood here: {key}"


class Container:
    """One service from its image, on this machine's network: other ports and addresses; the rest is compose's."""

    def __init__(self, engine: Engine, name: str, service: dict[str, Any], image: str, log: Path) -> None:
        self.name = unique(name)
        self.log = log
        self.service = service
        self._engine = engine
        self._image = image
        self._volumes: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, network: str = "host", extra: Sequence[str] = ()) -> Self:
        """Start it. ``extra`` are further options of podman's."""
        argv = [
            "podman", "run", "--rm", "--name", self.name, "--network", network, *extra,
            *options(self.service, self._volume), self._image, *(self.service.get("command") or ()),
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, env=dict(self._engine.environ), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent(signal.SIGTERM),
            )  # fmt: skip
        return self

    async def until_healthy(self) -> None:
        """Return when compose's own health check succeeds in it. Raises AssertionError when it ends before."""
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while (found := await self.check()).returncode:
            assert self.returncode is None, f"{self.name} ended with {self.returncode}\n{self.tail()}"
            assert time.monotonic() < deadline, f"{self.name}: {found.stdout}{found.stderr}\n{self.tail()}"
            await asyncio.sleep(0.5)

    async def check(self) -> subprocess.CompletedProcess[str]:
        """Run its health check in it, once."""
        kind, *command = self.service["healthcheck"]["test"]
        assert kind == "CMD"
        return await self.exec(*command)

    async def exec(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user."""
        return await asyncio.to_thread(self._engine.call, "podman", "exec", self.name, *argv)

    @property
    def returncode(self) -> int | None:
        """Exit status of its first process; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    async def end(self) -> int:
        """Return its exit status when it has ended by itself."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, END_WITHIN_S)

    async def stop(self) -> int:
        """Send SIGTERM, wait for compose's grace and no longer; return the exit status, 137 if that was too short."""
        await asyncio.to_thread(self._engine.call, "podman", "stop", self.name)
        return await self.end()

    async def remove(self) -> None:
        """End it, however it is, and remove what it kept."""
        if self._process is not None and self._process.poll() is None:
            await asyncio.to_thread(self._engine.call, "podman", "kill", self.name)
            await self.end()
        for name in self._volumes:
            self._engine.call("podman", "volume", "rm", "--force", name)

    def tail(self, lines: int = 60) -> str:
        """Return the end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.log}\n" + "\n".join(text.splitlines()[-lines:])

    def _volume(self, source: str) -> str:
        name = f"{self.name}-{source}"
        if name not in self._volumes:
            self._volumes.append(name)
        return name
