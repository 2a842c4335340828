"""A trajectory as a judge reads it: text, step by step, in the order it happened. Pure and deterministic.

Ids, clocks and metadata are left out: they say nothing of the play, and without them the same play is the same text. A
prompt that only grows from call to call is told by what it grew by. Rewards are left out unless asked for: a judge
that is shown a number repeats it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.events import LLMCall, Message, ProviderAccess
from flywheel.trajectory import StepView, Trajectory


@dataclass(frozen=True, slots=True)
class Dossier:
    """The text of one trajectory: ``items`` of (number of the step's block, text), and the digest of it all."""

    items: tuple[tuple[int, str], ...]
    key: str


def dossier(trajectory: Trajectory, *, rewards: bool) -> Dossier:
    """Return the trajectory as text; ``rewards``: with the rewards that were recorded."""
    calls = _Calls()
    blocks: list[tuple[int, list[str]]] = []
    for step in trajectory.steps:
        seqs = [event.seq for event in (step, *step.llm_calls, *step.provider_accesses)]
        blocks.append((min(seqs), list(_step(step, calls, rewards))))
    for call in trajectory.outside_llm_calls:
        blocks.append((call.seq, list(calls.tell(call))))
    for access in trajectory.outside_provider_accesses:
        blocks.append((access.seq, [_access(access)]))
    blocks.sort(key=lambda block: block[0])
    blocks.append((0, list(_end(trajectory, rewards))))
    items = tuple((number, text) for number, (_, texts) in enumerate(blocks) for text in texts)
    digest = hashlib.sha256()
    for number, text in items:
        data = text.encode()
        digest.update(b"%d %d\n" % (number, len(data)) + data)
    return Dossier(items, digest.hexdigest())


class _Calls:
    """Tells calls one after the other, repeating no message that the last one's prompt and answer held already."""

    def __init__(self) -> None:
        self._told: list[str] = []

    def tell(self, call: LLMCall) -> Iterator[str]:
        prompt = [_message(message) for message in _messages(call)]
        if prompt[: len(self._told)] == self._told:
            yield from prompt[len(self._told) :]
        else:
            yield from prompt
        answer = _message(Message(role="assistant", content=call.response, tool_calls=call.tool_calls))
        if call.reasoning:
            yield _line("reasoning", call.reasoning)
        if call.error is not None:
            yield _line("call failed", call.error)
        else:
            yield answer
        self._told = [*prompt, answer]


def _messages(call: LLMCall) -> Sequence[Message]:
    if call.messages:
        return call.messages
    parts = (("system", call.system_prompt), ("user", call.user_prompt))
    return [Message(role=role, content=content) for role, content in parts if content]


def _message(message: Message) -> str:
    text = message.content if isinstance(message.content, str) else _json(message.content) if message.content else ""
    for call in message.tool_calls or ():
        text += f"\ntool call {_json(call.function)}"
    return _line(message.role if message.name is None else f"{message.role} {message.name}", text)


def _step(step: StepView, calls: _Calls, rewards: bool) -> Iterator[str]:
    if step.environment_state:
        yield _line("environment", _json(step.environment_state))
    if step.observation is not None:
        yield _line("observation", _json(step.observation))
    for event in sorted((*step.llm_calls, *step.provider_accesses), key=lambda event: event.seq):
        if isinstance(event, LLMCall):
            yield from calls.tell(event)
        else:
            yield _access(event)
    if step.reasoning:
        yield _line("reasoning", step.reasoning)
    if step.action is not None:
        yield _line("action", _json(step.action.model_dump(mode="json", exclude_none=True)))
    if rewards and step.reward is not None:
        yield _line("reward", _json(step.reward))


def _access(access: ProviderAccess) -> str:
    shown = {"query": access.query, "data": access.data, "error": access.error}
    return _line(f"shown by {access.provider}", _json({name: value for name, value in shown.items() if value}))


def _end(trajectory: Trajectory, rewards: bool) -> Iterator[str]:
    facts = {
        "status": str(trajectory.status),
        "error": trajectory.error,
        "final_pnl": trajectory.final_pnl,
        "final_balance": trajectory.final_balance,
        "metrics": trajectory.metrics or None,
        "known_only_afterwards": trajectory.game_knowledge or None,
    }
    if rewards:
        facts |= {"total_reward": trajectory.total_reward, "reward_components": trajectory.reward_components or None}
    yield _line("end", _json({name: value for name, value in facts.items() if value is not None}))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _line(label: str, text: str) -> str:
    """Return one item; what no UTF-8 can hold becomes a question mark."""
    return f"[{label}] {text}".encode(errors="replace").decode()
