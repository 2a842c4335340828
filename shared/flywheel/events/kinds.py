"""The kinds of events and what they are made of. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    NonNegativeInt,
)

from flywheel.ids import Identifier, uuid7

SCHEMA_VERSION = 1

Seq = Annotated[int, Field(ge=0, lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class _FirstErrorOnly(FailFast):
    # The members of a union are hashed, and pydantic's own cannot be.
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


T = TypeVar("T")
#: A list whose first wrong item ends the reading: a million wrong ones must not be a million errors.
Items = Annotated[list[T], _FirstErrorOnly()]


class _Open(BaseModel):
    """Keeps fields it does not know: a newer producer must not lose data to an older reader."""

    model_config = ConfigDict(extra="allow", frozen=True, ser_json_inf_nan="null")


class Status(StrEnum):
    """How a trajectory ended. ``open`` and ``incomplete`` are ours: not ended yet; gone silent without an end."""

    OPEN = "open"
    COMPLETED = "completed"
    TERMINATED = "terminated"
    ERROR = "error"
    TIMEOUT = "timeout"
    INCOMPLETE = "incomplete"


class Failure(StrEnum):
    """Whose failure it was. Failed infrastructure says nothing about the agent's play: it is never reward 0."""

    INFRASTRUCTURE = "infrastructure"
    AGENT = "agent"


class Purpose(StrEnum):
    """What an LLM call was for."""

    ACTION = "action"
    REASONING = "reasoning"
    EVALUATION = "evaluation"
    RESPONSE = "response"
    OTHER = "other"


class RewardKind(StrEnum):
    """Where a reward entry comes from."""

    IMMEDIATE = "immediate"
    COMPONENT = "component"
    OUTCOME = "outcome"
    JUDGE = "judge"
    HUMAN = "human"


class Action(_Open):
    """What the agent did, and what came of it."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    success: bool | None = Field(default=None, description="whether the environment accepted and executed it")
    result: Any = None
    error: str | None = None
    correct: bool | None = Field(
        default=None, description="whether it was the right one, where the environment can tell"
    )


class ToolCall(_Open):
    """A tool call in the OpenAI layout."""

    id: str | None = None
    type: str = "function"
    function: dict[str, Any] = Field(description="name and arguments (arguments: the JSON text the model wrote)")


class Message(_Open):
    """A chat message in the OpenAI layout."""

    role: str
    content: str | Items[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: Items[ToolCall] | None = None
    tool_call_id: str | None = None


class Sampling(_Open):
    """Sampling parameters as they were sent. Recorded log-probabilities are after temperature."""

    temperature: FiniteFloat | None = None
    top_p: FiniteFloat | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: Items[str] | None = None


class Usage(_Open):
    """Token counts as the engine reported them."""

    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    total_tokens: NonNegativeInt | None = None


class Envelope(_Open):
    """What every event carries."""

    event_id: UUID = Field(default_factory=uuid7, description="UUIDv7, minted once at the source")
    trajectory_id: Identifier
    seq: Seq = Field(description="0, 1, 2 … within the trajectory, without holes")
    agent_id: Identifier
    time: AwareDatetime = Field(
        default_factory=lambda: datetime.now(UTC),
        description="RFC 3339 with offset, when it happened at the agent; from 1970 to 2261",
    )
    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=32767)


class TrajectoryStarted(Envelope):
    """One attempt of one agent at one scenario began."""

    kind: Literal["trajectory_started"] = "trajectory_started"
    scenario_id: Identifier = Field(description="the task and its start; what a group shares")
    group_id: Identifier | None = Field(default=None, description="attempts at the same start that GRPO compares")
    group_size: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="how many attempts the group will have, where known"
    )
    episode_id: Identifier | None = None
    split: Literal["train", "held_out"] = Field(
        default="train", description="held-out play measures and is never trained on"
    )
    channel: Identifier | None = Field(default=None, description="the model channel that the agent listens to")
    model_version: Identifier | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class Step(Envelope):
    """One turn: what the agent saw, did and got."""

    kind: Literal["step"] = "step"
    step: Seq = Field(description="0, 1, 2 … within the trajectory")
    environment_state: dict[str, Any] = Field(default_factory=dict)
    observation: Any = None
    reasoning: str | None = None
    action: Action | None = None
    reward: FiniteFloat | None = Field(default=None, description="immediate reward of this step")
    reward_components: dict[str, FiniteFloat] = Field(
        default_factory=dict,
        description="breakdown of the reward (profit and loss, accuracy, risk); never added to it",
    )
    done: bool = False
    started_at: AwareDatetime | None = None


class LLMCall(Envelope):
    """One call of a language model, with what training needs to repeat it exactly."""

    kind: Literal["llm_call"] = "llm_call"
    step: Seq | None = Field(default=None, description="the step it served")
    model: str
    model_version: Identifier | None = Field(default=None, description="Flywheel's version, where it served one")
    purpose: Purpose = Purpose.ACTION
    system_prompt: str | None = None
    user_prompt: str | None = None
    messages: Items[Message] | None = Field(default=None, description="the whole prompt as chat messages")
    tools: Items[dict[str, Any]] | None = Field(
        default=None, description="the tools that the model was offered, in the OpenAI layout"
    )
    response: str | None = None
    response_id: str | None = Field(default=None, description="the engine's own id of its answer")
    reasoning: str | None = None
    tool_calls: Items[ToolCall] | None = None
    sampling: Sampling = Field(default_factory=Sampling)
    usage: Usage = Field(default_factory=Usage)
    latency_ms: Annotated[FiniteFloat, Field(ge=0)] | None = None
    finish_reason: str | None = None
    prompt_token_ids: Items[TokenId] | None = Field(default=None, description="exactly what the model was fed")
    completion_token_ids: Items[TokenId] | None = Field(
        default=None, description="exactly what it sampled, end token included"
    )
    completion_logprobs: Items[FiniteFloat] | None = Field(
        default=None,
        description="log-probability of each sampled token, after temperature; as long as completion_token_ids",
    )
    error: str | None = None
    failure: Failure | None = None

    @property
    def trainable(self) -> bool:
        """Whether ids and log-probabilities were recorded and fit each other."""
        ids, logprobs = self.completion_token_ids, self.completion_logprobs
        return bool(self.prompt_token_ids and ids and logprobs and len(ids) == len(logprobs))


class ProviderAccess(Envelope):
    """What the agent was shown by a data provider, tool or memory."""

    kind: Literal["provider_access"] = "provider_access"
    step: Seq | None = None
    provider: str
    query: dict[str, Any] = Field(default_factory=dict)
    data: Any = None
    purpose: str | None = None
    latency_ms: Annotated[FiniteFloat, Field(ge=0)] | None = None
    error: str | None = None


class Reward(Envelope):
    """A reward that is not a step's own: a component, an outcome, a judgment, a person's verdict."""

    kind: Literal["reward"] = "reward"
    step: Seq | None = Field(default=None, description="the step it judges; none: the whole trajectory")
    reward_kind: RewardKind
    name: Identifier = "reward"
    value: FiniteFloat
    source: str | None = None
    reason: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class TrajectoryEnded(Envelope):
    """The attempt is over."""

    kind: Literal["trajectory_ended"] = "trajectory_ended"
    status: Literal["completed", "terminated", "error", "timeout"] = "completed"
    failure: Failure | None = Field(default=None, description="for error and timeout: whose failure it was")
    error: str | None = None
    dropped: dict[str, NonNegativeInt] | None = Field(
        default=None,
        description="events of this trajectory that the producer had to drop, by reason; their seq is missing",
    )
    final_balance: FiniteFloat | None = None
    final_pnl: FiniteFloat | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    game_knowledge: dict[str, Any] = Field(
        default_factory=dict,
        description="what became known only at the end; for scoring, never for a training prompt",
    )


Event = Annotated[
    TrajectoryStarted | Step | LLMCall | ProviderAccess | Reward | TrajectoryEnded,
    Field(discriminator="kind"),
]

KINDS: tuple[str, ...] = (
    "trajectory_started", "step", "llm_call", "provider_access", "reward", "trajectory_ended",
)  # fmt: skip
