"""The checks of ``flywheel validate``, each a small pure function over one stored trajectory.

A check yields a :class:`Finding` for each thing it looked at. What it never looked at cannot pass: a check without
findings says "no data".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from flywheel.events import Event, LLMCall, ProviderAccess, Reward, Step, TrajectoryStarted
from flywheel.exact import exact_sum
from flywheel.tools.findings import Check, Finding, Limits, Severity, Stored
from flywheel.trajectory import ADDED
from flywheel.windows import window_of

#: A prompt with less text than this, in characters, cannot say what the task is.
SHORTEST_PROMPT = 8


def _readable(stored: Stored, limits: Limits) -> Iterator[Finding]:
    yield from (Finding(str(event.event_id), True) for event in stored.events)
    yield from (Finding(event_id, False, why) for event_id, why in stored.unreadable)


def _steps_present(stored: Stored, limits: Limits) -> Iterator[Finding]:
    if stored.row.played:
        yield Finding(stored.row.trajectory_id, any(stored.of(Step)))


def _calls_present(stored: Stored, limits: Limits) -> Iterator[Finding]:
    if stored.row.played:
        yield Finding(stored.row.trajectory_id, any(stored.of(LLMCall)))


def _prompts(stored: Stored, limits: Limits) -> Iterator[Finding]:
    for call in stored.of(LLMCall):
        length = _prompt_length(call)
        yield Finding(_name(call), length >= SHORTEST_PROMPT, f"{length} characters")


def _tokens_recorded(stored: Stored, limits: Limits) -> Iterator[Finding]:
    for call in _answered(stored):
        recorded = bool(call.prompt_token_ids and call.completion_token_ids and call.completion_logprobs)
        yield Finding(_name(call), recorded, f"model {call.model}")


def _tokens_aligned(stored: Stored, limits: Limits) -> Iterator[Finding]:
    for call in _answered(stored):
        ids, logprobs = call.completion_token_ids, call.completion_logprobs
        if ids is None and logprobs is None:
            continue  # nothing to align: tokens_recorded says so
        have, want = len(logprobs or ()), len(ids or ())
        yield Finding(_name(call), have == want, f"{want} tokens, {have} log-probabilities")
        for field, value in (("prompt_tokens", call.prompt_token_ids), ("completion_tokens", ids)):
            counted = getattr(call.usage, field)
            if value is not None and counted is not None:
                yield Finding(_name(call), counted == len(value), f"usage.{field} {counted}, ids {len(value)}")


def _logprobs_negative(stored: Stored, limits: Limits) -> Iterator[Finding]:
    for call in _answered(stored):
        if call.completion_logprobs:
            worst = max(call.completion_logprobs)
            # Engines compute in low precision: a certain token may come out a hair above 0.
            yield Finding(_name(call), worst <= 1e-3, f"a log-probability of {worst:g}")


def _results(stored: Stored, limits: Limits) -> Iterator[Finding]:
    for step in stored.of(Step):
        if step.action is not None:
            told = step.action.result is not None or step.action.error is not None or step.action.success is not None
            yield Finding(_name(step), told, f"action {step.action.name}")


def _actions(stored: Stored, limits: Limits) -> Iterator[Finding]:
    for step in stored.of(Step):
        yield Finding(_name(step), step.action is not None)


def _rewards_finite(stored: Stored, limits: Limits) -> Iterator[Finding]:
    if number := stored.row.reward_count + stored.row.outcome_count:
        yield Finding(stored.row.trajectory_id, stored.row.total_reward is not None, f"{number} rewards, and no total")


def _rewards_present(stored: Stored, limits: Limits) -> Iterator[Finding]:
    if stored.row.played:
        yield Finding(stored.row.trajectory_id, stored.row.reward_count + stored.row.outcome_count > 0)


def _start_seen(stored: Stored, limits: Limits) -> Iterator[Finding]:
    if not stored.row.open:
        yield Finding(stored.row.trajectory_id, stored.row.started_at is not None)


def _gaps(stored: Stored, limits: Limits) -> Iterator[Finding]:
    if stored.row.open:
        return  # what is missing may be on its way
    seqs = sorted({event.seq for event in stored.events})
    holes = (seqs[-1] + 1 - len(seqs)) if seqs else 0
    yield Finding(stored.row.trajectory_id, holes == 0, f"{holes} of {seqs[-1] + 1 if seqs else 0} events missing")


def _seq_unique(stored: Stored, limits: Limits) -> Iterator[Finding]:
    repeated = [seq for seq, times in Counter(event.seq for event in stored.events).items() if times > 1]
    if stored.events:
        yield Finding(stored.row.trajectory_id, not repeated, f"seq {', '.join(map(str, repeated[:5]))}")


def _window(stored: Stored, limits: Limits) -> Iterator[Finding]:
    for event in stored.events:
        if isinstance(event, TrajectoryStarted):
            right = window_of(event.time)
            yield Finding(
                stored.row.trajectory_id,
                stored.row.window_id == right,
                f"filed in {stored.row.window_id}, started in {right}",
            )
            return


def _closed(stored: Stored, limits: Limits) -> Iterator[Finding]:
    silent = limits.now - stored.row.last_ingested_at
    stale = stored.row.open and silent > limits.open_for
    yield Finding(stored.row.trajectory_id, not stale, f"open, silent for {silent.total_seconds() / 60:.0f} min")


def _aggregates(stored: Stored, limits: Limits) -> Iterator[Finding]:
    row, wrong = stored.row, []
    if stored.unreadable:
        return  # bodies_readable says so; counting the rest would blame the wrong thing
    for name, count in _counts(stored.events).items():
        if (have := getattr(row, name)) != count:
            wrong.append(f"{name} {have}, events say {count}")
    sums = {
        "reward_sum": (row.reward_sum, exact_sum(_reward_values(stored.events)), "events say"),
        "outcome_sum": (row.outcome_sum, exact_sum(entry.value for entry in stored.entries), "the ledger says"),
    }
    for name, (have, want, says) in sums.items():
        # Of rows from before sums were exact, the last digits may be off.
        if have != want and not math.isclose(have, want, rel_tol=1e-9, abs_tol=1e-9):
            wrong.append(f"{name} {have:g}, {says} {want:g}")
    if row.outcome_count != len(stored.entries):
        wrong.append(f"outcome_count {row.outcome_count}, the ledger says {len(stored.entries)}")
    yield Finding(row.trajectory_id, not wrong, "; ".join(wrong))


def _counts(events: Sequence[Event]) -> dict[str, int]:
    calls = [event for event in events if isinstance(event, LLMCall)]
    return {
        "events": len(events),
        "steps": sum(isinstance(event, Step) for event in events),
        "llm_calls": len(calls),
        "untrainable_calls": sum(not call.trainable for call in calls),
        "provider_accesses": sum(isinstance(event, ProviderAccess) for event in events),
        "rewards": sum(isinstance(event, Reward) for event in events),
        "reward_count": sum(1 for _ in _reward_values(events)),
        "prompt_tokens": sum(_tokens(call.usage.prompt_tokens, call.prompt_token_ids) for call in calls),
        "completion_tokens": sum(_tokens(call.usage.completion_tokens, call.completion_token_ids) for call in calls),
        "seq_max": max((event.seq for event in events), default=-1),
    }


def _tokens(reported: int | None, ids: Sequence[int] | None) -> int:
    return len(ids or ()) if reported is None else reported


def _reward_values(events: Iterable[Event]) -> Iterator[float]:
    for event in events:
        if isinstance(event, Step) and event.reward is not None:
            yield event.reward
        elif isinstance(event, Reward) and event.reward_kind in ADDED:
            yield event.value


def _answered(stored: Stored) -> Iterator[LLMCall]:
    for call in stored.of(LLMCall):
        if call.error is None:
            yield call


def _prompt_length(call: LLMCall) -> int:
    texts = [call.system_prompt, call.user_prompt]
    for message in call.messages or ():
        parts = message.content if isinstance(message.content, list) else [{"text": message.content}]
        texts += [str(part.get("text") or "") for part in parts]
    return sum(len((text or "").strip()) for text in texts)


def _name(event: Event) -> str:
    return f"{event.trajectory_id}#{event.seq}"


CHECKS: tuple[Check, ...] = (
    Check(
        "bodies_readable", "Does every stored event still read under the contract?", Severity.FAIL,
        "the row was changed in the database, or by another version: replay the topic into a fresh database", _readable,
    ),
    Check(
        "steps_present", "Has every trajectory that was played to its end at least one step?", Severity.FAIL,
        "the agent ends trajectories without logging steps: look at where it calls start_step and complete_step",
        _steps_present,
    ),
    Check(
        "llm_calls_present", "Has every trajectory that was played to its end at least one LLM call?", Severity.FAIL,
        "nothing can be learned from it: log the calls inside the same trajectory as the steps", _calls_present,
    ),
    Check(
        "prompts_nontrivial", f"Has every LLM call a prompt of at least {SHORTEST_PROMPT} characters?", Severity.FAIL,
        "log messages (or system and user prompt) as they were sent", _prompts,
    ),
    Check(
        "tokens_recorded", "Has every answered LLM call token ids and log-probabilities?", Severity.WARN,
        "such calls are never trained on: ask the engine for token ids and logprobs and log them", _tokens_recorded,
    ),
    Check(
        "tokens_aligned", "Is there one log-probability a sampled token, and does the usage agree with the ids?",
        Severity.FAIL, "record what the engine sampled, end token included; never tokenise the text again",
        _tokens_aligned,
    ),
    Check(
        "logprobs_negative", "Are log-probabilities at most 0?", Severity.FAIL,
        "probabilities or losses were logged instead of log-probabilities", _logprobs_negative,
    ),
    Check(
        "actions_present", "Has every step an action?", Severity.WARN,
        "complete every step with the action taken, or with the one that means doing nothing", _actions,
    ),
    Check(
        "actions_with_result", "Does every action say what came of it (success, result or error)?", Severity.WARN,
        "complete the step after the environment has answered", _results,
    ),
    Check(
        "rewards_present", "Has every trajectory that was played to its end a reward?", Severity.WARN,
        "log rewards, or wait for the outcome to arrive; without one it cannot be compared in its group",
        _rewards_present,
    ),
    Check(
        "rewards_finite", "Is every total reward a finite number?", Severity.FAIL,
        "their sum is beyond every number that a computer holds: bound rewards at the source", _rewards_finite,
    ),
    Check(
        "start_seen", "Was the start of every closed trajectory seen?", Severity.WARN,
        "its window and group are guesses: the agent's first event was lost or not yet delivered", _start_seen,
    ),
    Check(
        "no_gaps", "Do the closed trajectories' events count 0, 1, 2 … without holes?", Severity.FAIL,
        "events were dropped at the source (recorder.stats of the SDK) or went to flywheel.events.dead", _gaps,
    ),
    Check(
        "seq_unique", "Has every event of a trajectory a seq of its own?", Severity.FAIL,
        "two runs published under one trajectory id: mint a new id for every attempt", _seq_unique,
    ),
    Check(
        "window_right", "Is every trajectory filed under the UTC hour of its start?", Severity.FAIL,
        "the row was written by something else than the recorder: replay the topic into a fresh database", _window,
    ),
    Check(
        "none_left_open", "Is no trajectory open that has been silent for too long?", Severity.FAIL,
        "is the recorder running? it closes silent ones after FLYWHEEL_RECORDER_IDLE_CLOSE_S", _closed,
    ),
    Check(
        "aggregates_agree", "Do the counters and the reward of every trajectory equal its events and its ledger?",
        Severity.FAIL,
        "the row was changed in the database: replay the topic into a fresh database", _aggregates,
    ),
)  # fmt: skip
