"""The keywords that the recorder's calls take, once for all faces. They are the fields of :mod:`flywheel.events`.

A keyword that is None counts as absent. One that the event does not know is kept with it, and said in the log once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

from flywheel.events import Action, Failure, Message, Purpose, RewardKind, Sampling, ToolCall, Usage


class StartFields(TypedDict, total=False):
    """Of ``start_trajectory``."""

    group_id: str | None
    group_size: int | None
    episode_id: str | None
    split: Literal["train", "held_out"]
    channel: str | None
    model_version: str | None
    metadata: Mapping[str, Any] | None
    time: datetime | None


class StepFields(TypedDict, total=False):
    """Of ``start_step``."""

    environment_state: Mapping[str, Any] | None
    observation: Any
    reasoning: str | None
    started_at: datetime | None


class CompleteFields(StepFields, total=False):
    """Of ``complete_step``. ``action`` may be its name alone."""

    action: Action | Mapping[str, Any] | str | None
    reward: float | None
    reward_components: Mapping[str, float] | None
    done: bool
    time: datetime | None


class LLMCallFields(TypedDict, total=False):
    """Of ``log_llm_call``."""

    model: str
    model_version: str | None
    purpose: Purpose | str
    system_prompt: str | None
    user_prompt: str | None
    messages: Sequence[Message | Mapping[str, Any]] | None
    tools: Sequence[Mapping[str, Any]] | None
    response: str | None
    response_id: str | None
    reasoning: str | None
    tool_calls: Sequence[ToolCall | Mapping[str, Any]] | None
    sampling: Sampling | Mapping[str, Any] | None
    usage: Usage | Mapping[str, Any] | None
    latency_ms: float | None
    finish_reason: str | None
    prompt_token_ids: Sequence[int] | None
    completion_token_ids: Sequence[int] | None
    completion_logprobs: Sequence[float] | None
    error: str | None
    failure: Failure | str | None
    step: int | None
    time: datetime | None


class AccessFields(TypedDict, total=False):
    """Of ``provider``, next to ``provider`` and ``query``."""

    data: Any
    purpose: str | None
    latency_ms: float | None
    error: str | None
    step: int | None
    time: datetime | None


class ProviderFields(AccessFields, total=False):
    """Of ``log_provider_access``, next to ``provider``."""

    query: Mapping[str, Any] | None


class RewardFields(TypedDict, total=False):
    """Of ``log_reward``, next to ``value``."""

    reward_kind: RewardKind | str
    name: str
    source: str | None
    reason: str | None
    metadata: Mapping[str, Any] | None
    step: int | None
    time: datetime | None


class OutcomeFields(TypedDict, total=False):
    """Of ``outcome``, next to what it is about and its rules."""

    name: str
    revision: int
    facts: Mapping[str, Any] | None
    retracted: bool
    time: datetime | None


class EndFields(TypedDict, total=False):
    """Of ``end_trajectory``."""

    status: Literal["completed", "terminated", "error", "timeout"]
    failure: Failure | str | None
    error: str | None
    final_balance: float | None
    final_pnl: float | None
    metrics: Mapping[str, Any] | None
    game_knowledge: Mapping[str, Any] | None
    time: datetime | None
