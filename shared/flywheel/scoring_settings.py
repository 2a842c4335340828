"""The settings of scoring: which scorer a group gets, and the judge with its patience, prices and budgets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from flywheel.settings import Seconds, Section


class ScoringRule(BaseModel):
    """Which scorer the groups of matching channels and scenarios get. ``*``, ``?`` and ``[…]`` match as in a shell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scorer: Literal["recorded", "weighted", "heuristic", "ruler"]
    channel: str = "*"
    scenario: str = "*"
    weights: dict[str, FiniteFloat] = Field(default_factory=dict)
    rubric: str = ""


class ScoringSettings(Section):
    """The trainer's scorers: what a trajectory is worth, and the judge that may say so."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_SCORING_", hide_input_in_errors=True)

    scorer: Literal["recorded", "weighted", "heuristic", "ruler"] = Field(
        default="recorded", description="scorer of every group that no rule names another for"
    )
    rules: list[ScoringRule] = Field(
        default_factory=list,
        description='JSON list, the first that matches holds: `[{"channel": "*", "scenario": "shop-*", '
        '"scorer": "ruler"}]`; a rule may bring its own `weights` and `rubric`',
    )
    weights: dict[str, FiniteFloat] = Field(
        default_factory=dict, description="weighted: JSON, weight by component, `total_reward` for the recorded total"
    )
    pnl_scale: float = Field(default=500.0, gt=0, description="heuristic: profit that counts for tanh(1) = 0.76")
    rubric: str = Field(default="", description="ruler: how to score, in words for the judge; none: the built-in one")
    fallback: Literal["recorded", "weighted", "heuristic", "none"] = Field(
        default="recorded", description="scorer of a group that the judge failed on; none: the group is left out"
    )
    judge_url: str | None = Field(
        default=None, description="base URL of an OpenAI-compatible API, as in https://host/v1"
    )
    judge_key: SecretStr | None = Field(default=None, description="its key, sent as bearer token")
    judge_model: str | None = Field(default=None, description="the judge's model")
    judge_temperature: float = Field(default=0.0, ge=0, description="its sampling temperature, where it takes one")
    judge_passes: int = Field(default=2, ge=1, le=16, description="times a group is judged, each in another order")
    judge_group_size: int = Field(
        default=8, ge=3, description="most attempts in one request; larger groups are judged in parts"
    )
    judge_corrections: int = Field(default=2, ge=0, description="times an unusable answer is sent back")
    judge_retries: int = Field(default=3, ge=0, description="times a request is repeated after 429, 5xx or no answer")
    judge_timeout_s: Seconds = Field(default=120.0, description="longest wait for one whole answer")
    judge_concurrency: int = Field(default=4, ge=1, description="requests at a time")
    judge_context_tokens: int = Field(default=32_000, ge=4000, description="longest request and answer together")
    judge_answer_tokens: int = Field(default=2000, ge=100, description="longest answer")
    judge_sees_rewards: bool = Field(
        default=False, description="show the judge the recorded rewards; it then tends to repeat them"
    )
    price_prompt: float = Field(default=0.0, ge=0, description="US dollars for a million tokens of requests")
    price_completion: float = Field(default=0.0, ge=0, description="US dollars for a million tokens of answers")
    batch_tokens: int | None = Field(default=5_000_000, ge=0, description="most judge tokens for one batch")
    day_tokens: int | None = Field(default=50_000_000, ge=0, description="most judge tokens in one UTC day")
    batch_usd: float | None = Field(default=None, ge=0, description="most judge cost for one batch")
    day_usd: float | None = Field(default=None, ge=0, description="most judge cost in one UTC day")
    batch_timeout_s: Seconds = Field(default=1800.0, description="time for judging one batch; then the fallback scores")

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        named = [(self.scorer, self.weights), *((rule.scorer, rule.weights or self.weights) for rule in self.rules)]
        if any(scorer == "ruler" for scorer, _ in named) and not (self.judge_url and self.judge_model):
            raise ValueError("the scorer ruler needs judge_url and judge_model")
        if any(scorer == "weighted" and not weights for scorer, weights in [*named, (self.fallback, self.weights)]):
            raise ValueError("the scorer weighted needs weights")
        if (self.batch_usd is not None or self.day_usd is not None) and not (
            self.price_prompt or self.price_completion
        ):
            raise ValueError("a budget in dollars needs price_prompt or price_completion")
        if self.judge_answer_tokens * 2 > self.judge_context_tokens:
            raise ValueError("judge_answer_tokens must leave half of judge_context_tokens to the request")
        return self
