"""Whether one recorded LLM call can be trained on, and as what. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from flywheel.events import LLMCall

#: Rounding may leave a log-probability a hair above 0; more than this is not a log-probability.
_LOGPROB_SLACK = 1e-3

#: What servers understand as "all of them".
_ALL_TOKENS = (None, 0, -1)


class CallDropped(StrEnum):
    """Why a call's tokens are not trained on."""

    FAILED = "call_failed"
    NO_IDS = "no_token_ids"
    NO_LOGPROBS = "no_logprobs"
    MISALIGNED = "misaligned"
    BAD_LOGPROBS = "bad_logprobs"
    TEMPERATURE = "other_temperature"
    NO_VERSION = "no_version"
    UNKNOWN_VERSION = "unknown_version"
    OTHER_BASE = "other_base_model"
    BAD_TOKEN = "token_outside_vocabulary"
    # Only where missing ids or log-probabilities are to be restored:
    NOT_LOADED = "policy_not_loaded"
    CUT_SAMPLING = "top_p_or_top_k"
    NO_MESSAGES = "no_messages"
    NOT_TEXT = "message_not_text"
    NO_TEMPLATE = "no_chat_template"
    CLOCK = "template_reads_clock"
    REFUSED = "template_refused"
    OTHER_PROMPT = "prompt_not_exact"
    NO_RESPONSE = "no_response"
    PARSED = "response_parsed"
    CONTROL = "control_token_in_response"
    MERGED = "token_over_boundary"
    NOT_SPELT = "text_without_tokens"
    NOT_EXACT = "response_not_exact"
    OTHER_COUNT = "other_token_count"


@dataclass(frozen=True, slots=True)
class Policy:
    """A model version as the registry knows it. Versions of another ``base`` share no weights, perhaps not
    even a tokenizer.
    """

    number: int
    base: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of one call: what the model was fed, and what it sampled."""

    prompt: list[int]
    completion: list[int]


#: Gives the ids of a call that lacks some, or says why they cannot be told.
Restore = Callable[[LLMCall], Tokens | CallDropped]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A call that can be trained on. ``logprobs`` None: to be computed with the model that training starts from,
    which is the one that sampled it; or, where it is ``supervised``, not to be had at all.
    """

    prompt: list[int]
    completion: list[int]
    logprobs: list[float] | None
    version: int
    at: datetime
    retokenized: bool = False
    supervised: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What calls and rows must satisfy, for one job.

    ``started_at`` is when the job was first taken up: a second try has the same rows. ``restore`` None: calls that
    lack ids or log-probabilities are dropped. ``supervise``: those whose log-probabilities cannot be had are used
    without.
    """

    current: Policy
    policies: Mapping[str, Policy]
    max_staleness: int
    temperature: float
    vocabulary: int
    started_at: datetime
    max_tokens: int | None = None
    max_age_s: float | None = None
    restore: Restore | None = None
    supervise: bool = False


def usable(call: LLMCall, version: str | None, rules: Rules) -> Sampled | CallDropped:
    """Return ``call``, sampled by ``version``, as it can be trained on, or why it cannot."""
    if (reason := _unusable(call, version, rules)) is not None:
        return reason
    assert version is not None, "a call without a version is not usable"
    policy = rules.policies[version]
    prompt, completion, logprobs = call.prompt_token_ids, call.completion_token_ids, call.completion_logprobs
    if not completion or not logprobs:
        logprobs = None
    lost = _lost(call, policy, rules, recorded=logprobs is not None)
    if lost is not None and not rules.supervise:
        return lost
    retokenized = False
    if not prompt or not completion:
        assert rules.restore is not None, "a call without ids is not usable otherwise"
        if isinstance(found := rules.restore(call), CallDropped):
            return found
        prompt, completion, retokenized = found.prompt, found.completion, True
    if max(max(prompt), max(completion)) >= rules.vocabulary:
        return CallDropped.BAD_TOKEN
    known = None if logprobs is None or lost else [min(0.0, value) for value in logprobs]
    return Sampled(prompt, completion, known, policy.number, call.time, retokenized, supervised=lost is not None)


def _lost(call: LLMCall, policy: Policy, rules: Rules, *, recorded: bool) -> CallDropped | None:
    """Return why the log-probabilities of the tokens cannot be had, as they were sampled and at our temperature."""
    if call.sampling.temperature is not None and call.sampling.temperature != rules.temperature:
        return CallDropped.TEMPERATURE
    if recorded:
        return None
    if rules.restore is None:
        return CallDropped.NO_LOGPROBS
    if policy.number != rules.current.number:
        return CallDropped.NOT_LOADED
    if call.sampling.top_p not in (None, 1.0) or call.sampling.top_k not in _ALL_TOKENS:
        return CallDropped.CUT_SAMPLING
    return None


def _unusable(call: LLMCall, version: str | None, rules: Rules) -> CallDropped | None:
    """Return what no restoring can mend."""
    completion, logprobs = call.completion_token_ids, call.completion_logprobs
    if call.error is not None or call.failure is not None:
        return CallDropped.FAILED
    if rules.restore is None and not (call.prompt_token_ids and completion):
        return CallDropped.NO_IDS
    if completion == []:
        return CallDropped.NO_IDS  # it was recorded that nothing was sampled
    if completion and logprobs and len(logprobs) != len(completion):
        return CallDropped.MISALIGNED
    if logprobs and max(logprobs) > _LOGPROB_SLACK:
        return CallDropped.BAD_LOGPROBS
    if version is None:
        return CallDropped.NO_VERSION
    if (policy := rules.policies.get(version)) is None:
        return CallDropped.UNKNOWN_VERSION
    if policy.base != rules.current.base:
        return CallDropped.OTHER_BASE
    return None
