"""One request to a judge: any server that speaks OpenAI's chat completions. No retries here; what went wrong is told
apart.

Time and size of an answer are bounded whatever the server does. Of what servers differ in (structured answers, the
name of the answer's limit, temperature) the richest form is tried first; one that a server refuses is dropped for
good.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from flywheel import traceparent, tracing
from flywheel.scoring_settings import ScoringSettings
from services.trainer.scoring.prompt import answer_schema

_MOST_BYTES = 2 * 1024 * 1024
_TRY_LATER = frozenset({408, 409, 425, 429})
_NOT_UNDERSTOOD = frozenset({400, 422})


@dataclass(frozen=True, slots=True)
class Answer:
    """What the judge said. Token counts are None where it named none that make sense."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class NoAnswer(Exception):  # noqa: N818 - what happened
    """No answer came. ``again``: asking again may help; ``charged``: it may have cost money all the same."""

    def __init__(
        self, outcome: str, message: str, *, again: bool, charged: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.outcome, self.again, self.charged, self.retry_after = outcome, again, charged, retry_after


@dataclass(frozen=True, slots=True)
class _Dialect:
    """The optional parts of a request that this server takes, as far as we know."""

    formats: tuple[str, ...] = ("json_schema", "json_object", "none")
    temperature: bool = True
    limit: str = "max_tokens"

    def without(self, named: str | None) -> _Dialect | None:
        """Return the dialect without what the server named as wrong, or else with a simpler form of answer, if any."""
        if named == "temperature" and self.temperature:
            return replace(self, temperature=False)
        if named == "max_tokens" and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        return replace(self, formats=self.formats[1:]) if len(self.formats) > 1 else None


class JudgeClient:
    """Asks one judge. Safe to use by many tasks."""

    def __init__(self, settings: ScoringSettings, http: httpx.AsyncClient) -> None:
        assert settings.judge_url and settings.judge_model, "checked with the settings"
        self._url = settings.judge_url.rstrip("/") + "/chat/completions"
        self._settings = settings
        self._model = settings.judge_model
        self._http = http
        self._dialect = _Dialect()

    async def ask(self, messages: Sequence[Mapping[str, str]], ids: Sequence[str]) -> Answer:
        """Return the answer to ``messages`` about these ids. Raises NoAnswer."""
        while True:
            used = self._dialect
            status, headers, body = await self._post(self._request(used, messages, ids))
            simpler = used.without(_param(body)) if status in _NOT_UNDERSTOOD else None
            if simpler is None:
                break
            if self._dialect is used:  # else another task has learnt it meanwhile
                self._dialect = simpler
        if status in _TRY_LATER or status >= 500:
            wait = _retry_after(headers.get("retry-after"))
            raise NoAnswer(f"http_{status}", _short(body), again=True, retry_after=wait)
        if status != 200:
            raise NoAnswer(f"http_{status}", _short(body), again=False)
        return _answer(body)

    def _request(self, dialect: _Dialect, messages: Sequence[Mapping[str, str]], ids: Sequence[str]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._model, "messages": list(messages), dialect.limit: self._settings.judge_answer_tokens,
        }  # fmt: skip
        if dialect.temperature:
            request["temperature"] = self._settings.judge_temperature
        match dialect.formats[0]:
            case "json_schema":
                request["response_format"] = answer_schema(ids)
            case "json_object":
                request["response_format"] = {"type": "json_object"}
        return request

    async def _post(self, request: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        key = self._settings.judge_key
        headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        if (context := tracing.current()) is not None:
            headers[traceparent.HEADER] = context  # a judge of our own may go on in the trace
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self._settings.judge_timeout_s),  # of the whole: a trickle resets no clock
                self._http.stream("POST", self._url, json=request, headers=headers) as response,
            ):
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > _MOST_BYTES:
                        raise NoAnswer("too_large", f"more than {_MOST_BYTES} bytes", again=True, charged=True)
                return response.status_code, response.headers, bytes(body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise NoAnswer("unreachable", repr(error), again=True) from error
        except TimeoutError as error:
            waited = f"no whole answer within {self._settings.judge_timeout_s:g} s"
            raise NoAnswer("timeout", waited, again=True, charged=True) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise NoAnswer("bad_url", str(error), again=False) from error
        except httpx.HTTPError as error:
            raise NoAnswer("broken", repr(error), again=True, charged=True) from error


def open_http(settings: ScoringSettings) -> httpx.AsyncClient:
    """Return the connections to the judge; the caller closes them. Proxies and certificates are the environment's."""
    limits = httpx.Limits(max_connections=settings.judge_concurrency)
    return httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10.0), limits=limits)


def _answer(body: bytes) -> Answer:
    try:
        content = json.loads(body)
        text = content["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise NoAnswer("malformed", f"not a chat completion: {_short(body)}", again=True, charged=True) from error
    usage = content.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text.encode(errors="replace").decode() if isinstance(text, str) else "",
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _count(value: object) -> int | None:
    """Return a token count that can be one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _param(body: bytes) -> str | None:
    """Return the parameter that an error names, in OpenAI's layout."""
    try:
        param = json.loads(body)["error"]["param"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return param if isinstance(param, str) else None


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as seconds or as a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _short(body: bytes) -> str:
    return body[:300].decode(errors="replace").replace("\x00", "\ufffd")
