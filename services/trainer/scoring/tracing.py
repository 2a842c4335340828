"""Spans of requests to the judge, by OpenTelemetry's conventions for generative AI.

https://github.com/open-telemetry/semantic-conventions-genai: one span a request. What was asked and answered is not in
them: the database has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from flywheel import tracing
from flywheel.scoring_settings import ScoringSettings
from services.trainer.scoring.client import Answer, NoAnswer


@contextmanager
def judge_span(settings: ScoringSettings, attempt: int) -> Iterator[None]:
    """Trace one request to the judge."""
    where = urlsplit(settings.judge_url or "")
    attributes: dict[str, str | int | float] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",  # by its interface, which is all that we know
        "gen_ai.request.model": settings.judge_model or "",
        "gen_ai.request.max_tokens": settings.judge_answer_tokens,
        "gen_ai.request.temperature": settings.judge_temperature,
        "server.address": where.hostname or "",
        "flywheel.judge.attempt": attempt,
    }
    if where.port is not None:
        attributes["server.port"] = where.port
    with tracing.span(f"chat {settings.judge_model}", kind=tracing.SpanKind.CLIENT, attributes=attributes):
        try:
            yield
        except NoAnswer as none:
            tracing.say({"flywheel.judge.outcome": none.outcome})
            raise


def judged(answer: Answer) -> None:
    """Note on the request's span what the answer cost, as far as the judge said so."""
    counts = {"gen_ai.usage.input_tokens": answer.prompt_tokens, "gen_ai.usage.output_tokens": answer.completion_tokens}
    tracing.say({name: count for name, count in counts.items() if count is not None})
