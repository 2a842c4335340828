"""The spans of a training job, within the trace of its batch: the job, its scoring, and the stages of the worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from flywheel import tracing
from services.trainer.protocol import Stage, Steps
from services.trainer.store import Claimed

Result = TypeVar("Result")
Listener = Callable[[Stage | Steps], None]


def job_span(job: Claimed) -> AbstractContextManager[tracing.Span]:
    """Trace one try of a job, where its batch's trace goes on."""
    order = job.order
    return tracing.span(
        "train",
        parent=job.trace_context,
        attributes={
            "flywheel.job.id": order.job_id,
            "flywheel.job.attempt": job.attempt,
            "flywheel.batch.id": order.batch_id,
            "flywheel.channel": order.channel,
            "flywheel.model.id": order.model_id,
            "flywheel.model.parent_version": order.parent.version,
        },
    )


async def traced(name: str, work: Callable[[], Awaitable[Result]]) -> Result:
    """Trace what ``work`` does, and return what it returns."""
    with tracing.span(name):
        return await work()


@contextmanager
def stage_spans(listen: Listener) -> Iterator[Listener]:
    """Give a listener that tells ``listen`` and traces each of the worker's stages, from its report to the next."""
    with ExitStack() as under_way:

        def hear(report: Stage | Steps) -> None:
            if isinstance(report, Stage):
                under_way.close()
                under_way.enter_context(tracing.span(report.status))
            listen(report)

        yield hear
