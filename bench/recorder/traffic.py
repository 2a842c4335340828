"""Events like those of production: 20 a trajectory, 0.9 to 2 KB each, a third of them LLM calls with token ids."""

from __future__ import annotations

import random
from collections.abc import Iterator

from flywheel.events import (
    Action,
    Event,
    LLMCall,
    Message,
    ProviderAccess,
    Sampling,
    Step,
    TrajectoryEnded,
    TrajectoryStarted,
    Usage,
    dump,
)

EVENTS_PER_TRAJECTORY = 20

_WORDS = ("price", "signal", "window", "market", "order", "spread", "volume", "hold", "risk", "depth", "trend", "model")


def trajectory(name: str, rng: random.Random, *, ended: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield (key, value) of one trajectory's events, in order of ``seq``; ids are minted now."""
    last = EVENTS_PER_TRAJECTORY - 1
    for seq in range(EVENTS_PER_TRAJECTORY if ended else last):
        envelope = {"trajectory_id": name, "seq": seq, "agent_id": f"agent-{rng.randrange(50):02d}"}
        yield name, dump(_event(envelope, seq, last, rng))


def trajectories(prefix: str, events: int, seed: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield ``events`` events, of 100 trajectories at a time in turn: as agents that play at once publish them."""
    rng = random.Random(seed)
    made = 0
    count = 0
    while made < events:
        playing = [trajectory(f"{prefix}-{count + n:07d}", rng) for n in range(100)]
        count += 100
        for turn in zip(*playing, strict=True):
            for event in turn:
                if made < events:
                    made += 1
                    yield event


def start(name: str) -> tuple[str, bytes]:
    """Return (key, value) of a trajectory's first event."""
    return name, dump(TrajectoryStarted(trajectory_id=name, seq=0, agent_id="agent-00", scenario_id="scenario-00"))


def _event(envelope: dict[str, object], seq: int, last: int, rng: random.Random) -> Event:
    number = (seq - 1) // 3
    if seq == 0:
        started = {"scenario_id": f"scenario-{rng.randrange(40):02d}", "channel": "default", "model_version": "1.4.0"}
        return TrajectoryStarted.model_validate(envelope | started | {"metadata": {"prompt": _text(rng, 140)}})
    if seq == last:
        ended = {"final_pnl": rng.gauss(0, 10), "metrics": {"summary": _text(rng, 130)}}
        return TrajectoryEnded.model_validate(envelope | ended)
    match seq % 3:
        case 1:
            book = [{"price": round(rng.uniform(90, 110), 2), "size": rng.randrange(100)} for _ in range(12)]
            return ProviderAccess.model_validate(
                envelope | {"step": number, "provider": "orderbook", "query": {"symbol": "ABC"},
                            "data": {"book": book, "news": _text(rng, 60)}}
            )  # fmt: skip
        case 2:
            prompt, sampled = [rng.randrange(50_000) for _ in range(90)], [rng.randrange(50_000) for _ in range(24)]
            return LLMCall.model_validate(
                envelope | {
                    "step": number, "model": "qwen3-0.6b", "model_version": "1.4.0",
                    "messages": [Message(role="user", content=_text(rng, 60))], "response": _text(rng, 16),
                    "sampling": Sampling(temperature=1.0), "usage": Usage(prompt_tokens=90, completion_tokens=24),
                    "prompt_token_ids": prompt, "completion_token_ids": sampled,
                    "completion_logprobs": [round(-rng.random() * 3, 4) for _ in sampled],
                }
            )  # fmt: skip
        case _:
            return Step.model_validate(
                envelope | {
                    "step": number,
                    "environment_state": {"cash": round(rng.uniform(0, 1e4), 2), "positions": {"ABC": 3}},
                    "observation": _text(rng, 110), "reasoning": _text(rng, 25), "reward": round(rng.gauss(0, 1), 3),
                    "action": Action(name="buy", parameters={"quantity": rng.randrange(9)}, success=True),
                }
            )  # fmt: skip


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))
