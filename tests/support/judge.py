"""A judge as a real HTTP server that speaks OpenAI's chat completions, well-behaved or as bad as one can be.

It reads the question as a model would: by the boundary lines. What it thinks of an attempt is the number that it
names as ``quality=0.7``; without one, 0.5. What it was asked is kept.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

QUALITY = re.compile(r"quality=([0-9.]+)")


@dataclass
class Asked:
    """One request, as the judge understood it: the attempts' texts by id, in the order shown."""

    body: dict[str, Any]
    attempts: dict[str, str]
    shared: str
    key: str | None
    trace: str | None = None


Mode = Callable[["Judge", web.Request, Asked], Any]


@dataclass
class Judge:
    """The server. ``modes`` answer one request each, in turn, the last one for ever; empty: all is well."""

    modes: list[Mode] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    hold: asyncio.Event | None = None
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Judge:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert self._runner.addresses
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        shared, attempts = read(body["messages"][1]["content"])
        asked = Asked(body, attempts, shared, request.headers.get("authorization"), request.headers.get("traceparent"))
        self.asked.append(asked)
        if self.hold is not None:
            await self.hold.wait()
        mode = (self.modes.pop(0) if len(self.modes) > 1 else self.modes[0]) if self.modes else fine
        found = mode(self, request, asked)
        return await found if asyncio.iscoroutine(found) else found


def read(question: str) -> tuple[str, dict[str, str]]:
    """Take a question apart by its boundary lines: what is shared, and the attempts by id."""
    token = question.split("\n", 1)[0].removeprefix("Boundary token: ")
    attempts: dict[str, str] = {}
    shared = ""
    current: list[str] = []
    name = ""
    for line in question.split("\n")[1:]:
        if line.startswith(f"=== {token} "):
            what = line.removeprefix(f"=== {token} ")
            if what == "end":
                if name:
                    attempts[name] = "\n".join(current)
                else:
                    shared = "\n".join(current)
            else:
                name = what.removeprefix("attempt ") if what.startswith("attempt ") else ""
                current = []
        else:
            current.append(line)
    return shared, attempts


def quality(text: str) -> float:
    found = QUALITY.findall(text)
    return float(found[-1]) if found else 0.5


def opinions(asked: Asked) -> list[dict[str, Any]]:
    return [{"id": name, "explanation": f"so good: {quality(text)}", "score": quality(text)}
            for name, text in asked.attempts.items()]  # fmt: skip


def completion(content: Any, *, usage: Any = None) -> web.Response:
    used = {"prompt_tokens": 1000, "completion_tokens": 100} if usage is None else usage
    message = {"role": "assistant", "content": content}
    whole = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": used}
    return web.json_response(text=json.dumps(whole))


def scores(entries: Sequence[Any]) -> web.Response:
    return completion(json.dumps({"scores": list(entries)}))


def changed(change: Callable[[list[dict[str, Any]]], list[Any]]) -> Mode:
    """A judge that says ``change`` of what it should say."""
    return lambda judge, request, asked: scores(change(opinions(asked)))


def fine(judge: Judge, request: web.Request, asked: Asked) -> web.Response:
    return scores(opinions(asked))


def raw(content: Any, **more: Any) -> Mode:
    return lambda judge, request, asked: completion(content, **more)


def status(code: int, headers: dict[str, str] | None = None, body: Any = None) -> Mode:
    return lambda judge, request, asked: web.json_response(body or {"error": {}}, status=code, headers=headers or {})


async def never(judge: Judge, request: web.Request, asked: Asked) -> web.Response:
    await asyncio.sleep(3600)
    raise AssertionError


async def trickle(judge: Judge, request: web.Request, asked: Asked) -> web.StreamResponse:
    """A byte now and then, for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def huge(judge: Judge, request: web.Request, asked: Asked) -> web.StreamResponse:
    """Without end, as fast as it is read."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def cut(judge: Judge, request: web.Request, asked: Asked) -> web.StreamResponse:
    """The connection ends in the middle of the answer."""
    response = web.StreamResponse(headers={"content-length": "5000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.close()
    return response


def fenced(judge: Judge, request: web.Request, asked: Asked) -> web.Response:
    answer = json.dumps({"scores": opinions(asked)}, indent=1)
    return completion(f"Here is my {{careful}} judgment.\n```json\n{answer}\n```\nI hope it helps!")


def thinking(judge: Judge, request: web.Request, asked: Asked) -> web.Response:
    draft = json.dumps({"scores": []})
    return completion(f"<think>Perhaps {draft}? No.</think>\n{json.dumps({'scores': opinions(asked)})}")


def half(judge: Judge, request: web.Request, asked: Asked) -> web.Response:
    answer = json.dumps({"scores": opinions(asked)})
    return completion(answer[: len(answer) // 2])


def backwards(judge: Judge, request: web.Request, asked: Asked) -> web.Response:
    return scores(opinions(asked)[::-1])


def picky(*refused: str) -> Mode:
    """A server that does not know these parameters; a schema counts as ``json_schema``."""

    def mode(judge: Judge, request: web.Request, asked: Asked) -> web.Response:
        body = asked.body
        for name in refused:
            schema = name == "json_schema" and body.get("response_format", {}).get("type") == "json_schema"
            if name in body or schema:
                error = {"message": "unsupported", "param": None if schema else name}
                return web.json_response({"error": error}, status=400)
        return fine(judge, request, asked)

    return mode


#: Every way to be useless for ever, by name.
HOPELESS: dict[str, Mode] = {
    "one too few": changed(lambda said: said[1:]),
    "one too many": changed(lambda said: [*said, {"id": "A0000000000", "explanation": "", "score": 1}]),
    "an id twice": changed(lambda said: [*said, said[0]]),
    "an id twice instead of another": changed(lambda said: [*said[1:], said[1]]),
    "unknown ids": changed(lambda said: [{**one, "id": f"trajectory-{i}"} for i, one in enumerate(said)]),
    "ids as numbers": changed(lambda said: [{**one, "id": i} for i, one in enumerate(said)]),
    "scores as text": changed(lambda said: [{**one, "score": str(one["score"])} for one in said]),
    "scores as words": changed(lambda said: [{**one, "score": "good"} for one in said]),
    "scores as truth": changed(lambda said: [{**one, "score": True} for one in said]),
    "no scores": changed(lambda said: [{**one, "score": None} for one in said]),
    "out of range": changed(lambda said: [{**one, "score": 1 + one["score"]} for one in said]),
    "below range": changed(lambda said: [{**one, "score": -0.1} for one in said]),
    "from 0 to 100": changed(lambda said: [{**one, "score": round(100 * one["score"]) + 2} for one in said]),
    "a number without end": changed(lambda said: [{**one, "score": 10**400} for one in said]),
    "NaN": changed(lambda said: [{**one, "score": float("nan")} for one in said]),
    "a list": raw("[0.1, 0.2]"),
    "prose": raw("The first attempt was clearly the best one."),
    "an object for a list": raw('{"scores": {"A1": 0.5}}'),
    "entries of text": raw('{"scores": ["0.5"]}'),
    "nothing": raw(""),
    "null": raw(None),
    "parts": raw([{"type": "text", "text": "{}"}]),
    "a deep nest": raw("[" * 100_000),
    "half a JSON": half,
    "empty choices": lambda judge, request, asked: web.json_response({"choices": []}),
    "an error with status 200": lambda judge, request, asked: web.json_response({"error": "no"}),
    "no JSON at all": lambda judge, request, asked: web.Response(text="<html>"),
    "500": status(500),
    "503": status(503),
    "429 with a pause": status(429, {"retry-after": "0"}),
    "429 until tomorrow": status(429, {"retry-after": "86400"}),
    "401": status(401),
    "404": status(404),
    "400 for everything": status(400),
    "timeout": never,
    "a slow trickle": trickle,
    "a huge answer": huge,
    "a cut connection": cut,
}
