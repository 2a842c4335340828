"""The model subscriber: an agent hears of a version, fetches and verifies it, and swaps it in between two ticks.

Hearing, fetching and loading happen beside the agent. The model that plays changes only in
:meth:`ModelSubscriber.tick`, which the agent calls where a change does no harm; only then is the version
acknowledged as loaded. An artifact that is damaged, or that cannot be loaded, is acknowledged as failed, and the
old model keeps playing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar
from urllib.parse import quote

from flywheel import traceparent
from flywheel.errors import PoisonError, TransientError
from flywheel.messages import DEFAULT_CHANNEL, ModelUpdate
from flywheel.sdk.acks import Acknowledgements
from flywheel.sdk.cache import ModelCache
from flywheel.sdk.chance import fraction
from flywheel.sdk.signal import Signal
from flywheel.sdk.spans import NO_SPAN, Span, open_spans
from flywheel.sdk.transport import KafkaTransport
from flywheel.settings import AgentSettings, Connections, ServiceSettings
from flywheel.storage.objects import ObjectStore
from flywheel.stream.cluster import Cluster
from flywheel.stream.follow import follow
from flywheel.stream.record import Record
from flywheel.topics import MODEL_UPDATES

_log = logging.getLogger("flywheel.sdk")
M = TypeVar("M")

#: Before the first model: how long to read on in the topic's past, so as not to load what is outdated, in seconds.
_CATCH_UP_S = 0.05
_LONGEST_DELAY_S = 5.0
_HEARD = 1000


@dataclass(frozen=True, slots=True)
class LoadedModel(Generic[M]):
    """A version, ready to play."""

    version: str
    number: int
    model: M
    path: Path
    update: ModelUpdate
    load_seconds: float
    """How long fetching, verifying and loading took."""

    span: Span = field(default=NO_SPAN, repr=False, compare=False)
    """Its trace, from its announcement to its first play."""


class ModelSubscriber(Generic[M]):
    """Follows a channel's versions: ``async with ModelSubscriber.from_env("agent-1", load) as subscriber: …``.

    ``loader`` turns a folder of verified files into a model; it runs in a thread, while the old model plays, so
    memory for two is needed. ``keep`` copies stay in ``cache``, a folder for this agent alone.
    """

    def __init__(
        self,
        agent_id: str,
        loader: Callable[[Path], M],
        *,
        bootstrap: Cluster | str,
        store: ObjectStore,
        cache: Path,
        channel: str = DEFAULT_CHANNEL,
        keep: int = 3,
        flush_timeout_s: float = 5.0,
        tracing: bool = False,
        tracing_ratio: float = 1.0,
    ) -> None:
        self.agent_id = agent_id
        self.channel = channel
        self.last_error: str | None = None
        self._loader = loader
        self._bootstrap = bootstrap
        self._cache = ModelCache(store, cache, keep)
        self._client_id = f"flywheel-agent-{agent_id}"
        self._acks = Acknowledgements(agent_id, channel, lambda: KafkaTransport(bootstrap, self._client_id))
        self.flush_timeout_s = flush_timeout_s
        self._heard: deque[str] = deque(maxlen=_HEARD)
        self._spans = open_spans(tracing, tracing_ratio)
        self._wanted: ModelUpdate | None = None
        self._announced: str | None = None  # the trace context of what is wanted
        self._ready: LoadedModel[M] | None = None
        self._current: LoadedModel[M] | None = None
        self._news = asyncio.Event()
        self._changed = Signal()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def from_env(
        cls,
        agent_id: str,
        loader: Callable[[Path], M],
        *,
        channel: str | None = None,
        cache: Path | None = None,
        keep: int = 3,
    ) -> Self:
        """Return a subscriber set up by the environment (docs/settings.md).

        Raises pydantic.ValidationError naming a variable that does not fit, FatalError naming a file of a certificate
        or password that cannot be used.
        """
        from flywheel.storage.s3 import S3ObjectStore  # agents with a store of their own need no S3 client

        connections, settings, service = Connections.load(), AgentSettings.load(), ServiceSettings.load()
        return cls(
            agent_id,
            loader,
            bootstrap=Cluster(connections),
            store=S3ObjectStore.from_settings(connections),
            cache=cache or service.var / "agents" / quote(agent_id, safe="") / "models",
            channel=channel or settings.channel,
            keep=keep,
            tracing=service.otel,
            tracing_ratio=service.otel_ratio,
        )

    @property
    def current(self) -> LoadedModel[M] | None:
        """The model that plays. It changes only in :meth:`tick` and :meth:`wait_for_model`."""
        return self._current

    def tick(self) -> bool:
        """Swap in the version that is ready, if one is, and acknowledge it; return whether the version changed.

        Call it between two ticks, where no call of the old model is under way. It does not wait.
        """
        ready, self._ready = self._ready, None
        if ready is None:
            return False
        before, self._current = self._current, ready
        ready.span.end({"load_seconds": ready.load_seconds})
        self._acks.loaded(ready.update, ready.load_seconds, ready.span.headers)
        self._news.set()  # lets the background task tidy the cache
        return before is None or before.version != ready.version

    async def wait_for_model(self, timeout_s: float | None = None) -> LoadedModel[M]:
        """Wait until there is a model to play, swap in the first one, and return it. Raises TimeoutError."""
        if not await self._changed.until(lambda: bool(self._current or self._ready), timeout_s):
            why = self.last_error or "none was announced"
            raise TimeoutError(f"no model on channel {self.channel} within {timeout_s} s: {why}")
        if self._current is None:
            self.tick()
        assert self._current is not None
        return self._current

    async def wait_for_newer(self, than_version: str | None, timeout_s: float | None = None) -> bool:
        """Wait until a version other than ``than_version`` plays or is ready for :meth:`tick`."""

        def newer() -> bool:
            best = self._ready or self._current
            return best is not None and best.version != than_version

        return await self._changed.until(newer, timeout_s)

    async def start(self) -> None:
        """Begin to listen. Returns at once, whether there is a broker or not."""
        if not self._tasks:
            self._acks.start()
            self._tasks = [
                asyncio.create_task(self._listen(), name="flywheel-model-updates"),
                asyncio.create_task(self._prepare_wanted(), name="flywheel-model-loading"),
            ]

    async def close(self) -> None:
        """Stop listening, and send the acknowledgements that are left, for a few seconds at most."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        await self._acks.close(self.flush_timeout_s)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _listen(self) -> None:
        while True:
            try:
                updates = follow(self._bootstrap, MODEL_UPDATES.name, from_beginning=True, client_id=self._client_id)
                async with aclosing(updates):
                    async for record in updates:
                        self._hear(record)
            except Exception as error:
                self._complain(f"listening for model updates: {type(error).__name__}: {error}")
            await asyncio.sleep(_LONGEST_DELAY_S)

    def _hear(self, record: Record) -> None:
        if record.value is None:
            return
        try:
            update = ModelUpdate.parse(record.value)
        except PoisonError as error:
            self._complain(f"a model update at offset {record.offset} cannot be read: {error}")
            return
        if update.channel != self.channel or update.deployment_id in self._heard:
            return
        self._heard.append(update.deployment_id)  # a repeat must not bring an outdated version back
        if fraction(self.agent_id, update.deployment_id) < update.share:
            self._wanted, self._announced = update, record.header(traceparent.HEADER)
            self._ready = None  # superseded: it may have been replaced because it was bad
            self._news.set()

    async def _prepare_wanted(self) -> None:
        handled: ModelUpdate | None = None
        while True:
            await self._news.wait()
            self._news.clear()
            if handled is None:
                await asyncio.sleep(_CATCH_UP_S)
            while self._wanted is not None and self._wanted is not handled:
                handled = self._wanted
                await self._prepare(handled)
            await asyncio.to_thread(self._tidy)

    async def _prepare(self, update: ModelUpdate) -> None:
        """Make ``update`` ready, or acknowledge that it failed; give up silently when a newer one supersedes it."""
        began = time.perf_counter()
        span = self._spans.load(self.agent_id, update, self._announced)
        try:
            path = await self._fetch(update)
            if self._wanted is not update or path is None:
                return
            current = self._current
            if current is not None and current.update.artifact == update.artifact:
                model = current.model
            else:
                model = await asyncio.to_thread(self._loader, path)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self._complain(f"version {update.version} is not taken: {text}")
            span.failed(error)
            span.end()
            self._acks.failed(update, text, self._current.version if self._current else None, span.headers)
            return
        if self._wanted is update:
            took = time.perf_counter() - began
            self._ready = LoadedModel(update.version, update.number, model, path, update, took, span)
            self._changed.notify()

    async def _fetch(self, update: ModelUpdate) -> Path | None:
        """Return the folder of verified files, trying again while the store is away; None when superseded meanwhile."""
        delay = 0.2
        while self._wanted is update:
            try:
                return await asyncio.to_thread(self._cache.fetch, update.artifact)
            except (TransientError, ConnectionError, TimeoutError) as error:
                self._complain(f"fetching version {update.version}, trying again: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._news.wait()
                    self._news.clear()
            delay = min(_LONGEST_DELAY_S, delay * 2)
        return None

    def _tidy(self) -> None:
        in_use = [loaded.path for loaded in (self._current, self._ready) if loaded is not None]
        try:
            self._cache.evict(in_use)
        except OSError as error:
            self._complain(f"tidying the model cache: {error}")

    def _complain(self, text: str) -> None:
        if text != self.last_error:
            _log.warning("%s (agent %s)", text, self.agent_id)
        self.last_error = text
