"""The stack on one machine: what is started, in which order, where, and how it is stopped.

Start: Kafka, Postgres and S3 together, each waited for by asking it; topics, database and bucket; then the services.
Stop: the reverse. A part that the environment points elsewhere (``FLYWHEEL_KAFKA``, ``FLYWHEEL_POSTGRES``,
``FLYWHEEL_S3``) is used, not started. Everything lives in ``var``; stacks with different ``var`` do not meet.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

import asyncpg

from deploy.local import probes, services
from deploy.local.broker import Detour
from deploy.local.infrastructure import ELSEWHERE, ENTRANCE, PLANS, Site, absolute, declare
from deploy.local.leftovers import end_leftovers
from deploy.local.parts import INFRASTRUCTURE, SERVICES, Part, Say, StackError
from deploy.local.ports import PortBook
from deploy.local.state import StackFiles, StackState, read_env, render_env, start_time, write_private
from deploy.local.supervisor import ChildSpec, Supervisor, append
from deploy.local.waiting import FirstFailure, end_of, in_words
from flywheel.errors import TransientError
from flywheel.settings import LocalSettings

#: Longest waits for a part to answer, in seconds.
INFRASTRUCTURE_READY_S = 120.0
SERVICE_READY_S = 600.0

#: A person who waits is told why, this often, in seconds.
NEWS_S = 15.0

#: A part that ended this often before it was ever ready will not become ready by itself.
START_RESTARTS = 4


class LocalStack:
    """One stack in the folder ``var``, supervised by the running event loop.

    ``services`` is True for all that are installed, False for Kafka, Postgres and S3 alone, or the names of some.
    ``environ`` is what the parts inherit (this process's own by default). ``settings`` are the stack's own;
    ``detour`` is a second way to its broker.
    ``env`` holds, once started, the ``FLYWHEEL_…`` settings for whoever wants to use the stack.
    """

    def __init__(
        self,
        var: Path,
        services: bool | Collection[str] = True,
        environ: Mapping[str, str] | None = None,
        settings: LocalSettings | None = None,
        detour: Detour | None = None,
    ) -> None:
        self.files = StackFiles(var)
        self.env: dict[str, str] = {}
        self._services = _chosen(services)
        self._environ = dict(os.environ if environ is None else environ)
        self._settings = settings or LocalSettings.load()
        self._detour = detour
        self._on_progress: Say | None = None
        self._ports = PortBook()
        self._supervisor: Supervisor | None = None
        self._addresses: dict[str, str] = {}
        self._health: dict[str, str] = {}
        self._ready = False
        self._error: str | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """Return every part as it is now, in the order in which they start; health as of the last probe."""
        return {name: self._part(name) for name in (*INFRASTRUCTURE, *self._services) if name in self._addresses}

    async def start(self, on_progress: Say | None = None) -> None:
        """Start everything and return when every part is ready.

        Raises StackError, with everything stopped again, when a part cannot be started; so does cancellation.
        """
        self._on_progress = on_progress
        self.files.acquire()
        try:
            previous = await asyncio.to_thread(end_leftovers, self.files, self._say)
            self._ports = PortBook(previous.ports if previous else None)
            self._supervisor = Supervisor(self._say, self._write_state)
            self._write_state()
            await self._start_infrastructure(self._elsewhere(previous))
            await self._start_services()
            self._ready = True
            self._write_state()
        except BaseException as error:
            self._error = str(error) or type(error).__name__
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop what was started, services first. Data stays. Does nothing when nothing runs."""
        self._ready = False
        if self._supervisor is not None:
            running = self._supervisor.children
            await asyncio.gather(*(self._stop(name) for name in self._services if name in running))
            await asyncio.gather(*(self._stop(name) for name in INFRASTRUCTURE if name in running))
            self._write_state()
            self._supervisor = None
        self._ports.release()
        self.files.release()

    async def halt(self, name: str) -> None:
        """Stop one part that we started, until :meth:`resume`; its data stays."""
        await self._stop(name)

    async def resume(self, name: str) -> None:
        """Start a part again that was halted, and return when it is ready. Raises StackError."""
        assert self._supervisor is not None
        await self._run(self._supervisor.children[name].spec, self._addresses[name])
        await (self._until_declared(name) if name in INFRASTRUCTURE else self._until_ready(name))

    async def probe(self) -> dict[str, Part]:
        """Ask every part how it is, and return them."""
        self._health |= await probes.probe_all(list(self.parts.values()), self.env)
        return self.parts

    async def _start_infrastructure(self, elsewhere: Mapping[str, str]) -> None:
        self.env |= {
            "FLYWHEEL_VAR": str(self.files.var),
            "FLYWHEEL_ENV_FILE": str(self.files.env),
            "FLYWHEEL_S3_BUCKET": self._environ.get("FLYWHEEL_S3_BUCKET") or "flywheel",
            "FLYWHEEL_S3_REGION": self._environ.get("FLYWHEEL_S3_REGION") or "us-east-1",
        }
        site = Site(
            self.files, self._environ, self._settings, self._ports, bool(self._services), self._say, self._detour
        )
        async with FirstFailure() as group:
            for name in ELSEWHERE:
                if name in elsewhere:
                    group.create_task(self._use(name, elsewhere[name]))
                else:
                    group.create_task(self._start_part(name, site))
        self._write_env()

    def _elsewhere(self, previous: StackState | None) -> dict[str, str]:
        """Return the parts that the environment points elsewhere, with their addresses. How a part is entered is taken
        out of the environment for those that are started here.
        """
        known, env = {part.name: part.state for part in previous.parts} if previous else {}, read_env(self.files.env)
        found = {}
        for name, setting in ELSEWHERE.items():
            address = self._environ.get(setting)
            given = {each: self._environ.pop(each) for each in ENTRANCE[name] if self._environ.get(each)}
            # A shell that sourced our own env file points elsewhere only where that file did.
            ours = address == env.get(setting) and known.get(name) != "external"
            if address and not ours:
                found[name] = address
                self._environ |= {each: absolute(each, value) for each, value in given.items()}
            elif unused := sorted(each for each, value in given.items() if value != env.get(each)):
                self._say(f"{name}: {', '.join(unused)} not used: it is started here, {setting} points elsewhere")
        return found

    async def _use(self, name: str, address: str) -> None:
        self.env[ELSEWHERE[name]] = self._addresses[name] = address
        self.env |= {each: self._environ[each] for each in ENTRANCE[name] if each in self._environ}
        self._say(f"{name}: using {probes.public(address)}, not started here")
        await self._until_declared(name)

    async def _start_part(self, name: str, site: Site) -> None:
        planning = asyncio.create_task(asyncio.to_thread(PLANS[name], site))
        try:
            plan = await asyncio.shield(planning)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: what it runs (initdb, say) has ended before anybody is told that all has.
            await asyncio.wait({planning})
            raise
        self.env |= plan.env
        await self._run(plan.spec, plan.address)
        await self._until_declared(name)

    async def _until_declared(self, name: str) -> None:
        done = ""

        async def attempt() -> None:
            nonlocal done
            # The cheap question first: a client's own patience would cost seconds while the server starts.
            await probes.probe_infrastructure(name, self.env)
            done = await declare(name, self.env)

        await self._until(name, attempt, INFRASTRUCTURE_READY_S)
        self._say(f"{name}: ready at {probes.public(self._addresses[name])}, {done} there")

    async def _start_services(self) -> None:
        site = Site(self.files, self._environ, self._settings, self._ports, True, self._say)
        if self._services and "trainer" not in services.startable():
            self._say("trainer: not started, torch is not installed here; make setup EXTRAS=services,trainer,local,dev")
        for name in self._services:
            setting = services.port_setting(name)
            self.env[setting] = str(site.port(name, services.fixed_port(self._environ, setting), setting))
        self._write_env()
        environment = {**self._environ, **self.env}
        async with FirstFailure() as group:
            for name in self._services:
                group.create_task(self._start_service(name, environment))
        # The first to be ready may have become unready since: a consumer group moves its partitions as others join.
        for name in self._services:
            await self._until_ready(name)

    async def _start_service(self, name: str, environment: Mapping[str, str]) -> None:
        address = f"http://127.0.0.1:{self.env[services.port_setting(name)]}"
        await self._run(services.spec(name, environment, self.files.log(name)), address)
        await self._until_ready(name)
        self._say(f"{name}: ready at {address}")

    async def _until_ready(self, name: str) -> None:
        await self._until(name, lambda: services.probe(f"{self._addresses[name]}/readyz"), SERVICE_READY_S)

    async def _run(self, spec: ChildSpec, address: str) -> None:
        assert self._supervisor is not None
        self._addresses[spec.name] = address
        await self._supervisor.start(spec)

    async def _until(self, name: str, attempt: Callable[[], Awaitable[None]], patience: float) -> None:
        """Attempt until it works. Raises StackError after ``patience`` seconds, or when the part keeps ending."""
        news = time.monotonic() + NEWS_S
        try:
            async with asyncio.timeout(patience):
                while True:
                    try:
                        await attempt()
                        break
                    except (OSError, TransientError, asyncpg.PostgresError) as error:
                        self._health[name] = in_words(error)
                    child = self._supervisor.children.get(name) if self._supervisor else None
                    if child is not None and child.restarts >= START_RESTARTS:
                        raise StackError(f"{name} keeps ending as it starts: it {child.last_end}{self._tail(name)}")
                    if time.monotonic() > news:
                        self._say(f"{name}: not ready yet, {self._health[name]}")
                        news += NEWS_S
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            why = self._health.get(name, "no answer")
            raise StackError(f"{name} was not ready within {patience:g} s: {why}{self._tail(name)}") from error
        self._health[name] = "ok"

    async def _stop(self, name: str) -> None:
        assert self._supervisor is not None
        await self._supervisor.stop(name)
        self._health[name] = "stopped"
        self._say(f"{name}: stopped")

    def _say(self, line: str) -> None:
        append(self.files.log("supervisor"), line)
        if self._on_progress is not None:
            self._on_progress(line)

    def _tail(self, name: str) -> str:
        started = self._supervisor is not None and name in self._supervisor.children
        return end_of(self.files.log(name)) if started else ""

    def _part(self, name: str) -> Part:
        health = self._health.get(name, "not probed")
        child = self._supervisor.children.get(name) if self._supervisor else None
        if child is None:
            state = "external" if self._supervisor else "stopped"
            return Part(name, self._addresses[name], state, health=health)
        return Part(
            name, self._addresses[name], child.state, child.pid, child.started_at, health, child.restarts,
            child.spec.log,
        )  # fmt: skip

    def _write_env(self) -> None:
        kept = {name: value for name, value in self.env.items() if name != "FLYWHEEL_ENV_FILE"}
        write_private(self.files.env, render_env(kept))

    def _write_state(self) -> None:
        pid, parts = os.getpid(), list(self.parts.values())
        started = start_time(pid) or 0.0
        self.files.write_state(StackState(pid, started, self._ready, self._error, self._ports.remembered, parts))


def _chosen(wanted: bool | Collection[str]) -> tuple[str, ...]:
    if isinstance(wanted, bool):
        return services.startable() if wanted else ()
    if unknown := set(wanted) - set(SERVICES):
        raise ValueError(f"no such services: {sorted(unknown)}")
    return tuple(name for name in SERVICES if name in wanted)
