"""Log-probabilities that were not recorded are those of the model that sampled, or the call is not trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from flywheel import artifacts
from flywheel.errors import PoisonError
from flywheel.events import LLMCall, Sampling, Step, TrajectoryEnded, TrajectoryStarted
from services.trainer import models
from services.trainer.recompute import fill
from services.trainer.rows import Row
from tests.support.training import SIZES, played
from tests.support.world import unique
from tests.training import builders
from tests.training.bench import Bench
from tests.training.builders import drifted, recorded_rows, tiny_model
from tests.training.test_training import run, weights

pytestmark = pytest.mark.torch


def forget(rows: Sequence[Row]) -> list[Row]:
    """The same rows, with the log-probabilities of every other sampled token lost."""
    found = copy.deepcopy(list(rows))
    for row in found:
        for position in [i for i, mine in enumerate(row.sampled) if mine][::2]:
            row.logprobs[position] = math.nan
    return found


def test_what_was_lost_comes_back_and_nothing_else_changes() -> None:
    recorded = recorded_rows(tiny_model(), SIZES)
    rows = forget(recorded)
    fill(tiny_model(), rows, 1.0)
    for row, original in zip(rows, recorded, strict=True):
        assert row.unknown == []
        assert row.logprobs == pytest.approx(original.logprobs, abs=1e-5)
    whole, _ = run(drifted(tiny_model()), recorded)
    again, _ = run(drifted(tiny_model()), rows)
    torch.testing.assert_close(weights(whole), weights(again), atol=1e-5, rtol=0)


def test_they_are_those_at_the_temperature_of_sampling() -> None:
    (row, *_) = rows = forget(recorded_rows(tiny_model(), [2]))
    at = row.unknown[0]
    fill(tiny_model(), rows, 0.5)
    scores = tiny_model().eval()(torch.tensor([row.tokens])).logits[0, at - 1] / 0.5
    assert row.logprobs[at] == pytest.approx(scores.log_softmax(-1)[row.tokens[at]].item(), abs=1e-5)


def test_what_is_not_filled_in_fails_loudly() -> None:
    with pytest.raises(PoisonError, match="diverged"):
        run(tiny_model(), forget(recorded_rows(tiny_model(), SIZES)))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_ids_without_log_probabilities_train_as_if_they_had_been_recorded(bench: Bench) -> None:
    done = bench.trained(played(completion_logprobs=None), text_only="recompute")
    assert done.counts["calls"]["recomputed"] == done.counts["calls"]["usable"] == done.counts["calls"]["read"]
    assert done.counts["tokens"]["recomputed"] == done.counts["tokens"]["trained"]
    assert done.metrics["logp_diff_max"] < 1e-4
    lineage = artifacts.read_manifest(bench.store, done.artifact).lineage
    assert lineage["counts"]["rows"]["recomputed"] == sum(SIZES)
    assert lineage["settings"]["text_only"] == "recompute"
    assert lineage["counts"]["by_scenario"]["s"]["rows.recomputed"] == sum(SIZES)


def test_they_are_dropped_where_another_model_sampled_them(bench: Bench) -> None:
    with pytest.raises(PoisonError, match="policy_not_loaded"):
        bench.trained(played(completion_logprobs=None), version="1.1.0", text_only="recompute")
    assert set(bench.ledger.calls_dropped) == {"policy_not_loaded"}


def test_by_default_they_are_dropped(bench: Bench) -> None:
    with pytest.raises(PoisonError, match="no_logprobs"):
        bench.trained(played(completion_logprobs=None))


def test_age_is_counted_from_the_jobs_start(bench: Bench) -> None:
    with pytest.raises(PoisonError, match="too_old"):
        bench.trained(played(time=datetime(2026, 1, 1, tzinfo=UTC)), max_age_s=60.0)
    assert bench.trained(played(), max_age_s=3600.0).counts["rows"]["used"] == sum(SIZES)


def test_text_alone_trains_on_exactly_the_tokens_that_were_sampled(bench: Bench) -> None:
    """Played on ids, recorded as text: what comes back has the log-probabilities that the play had."""
    model, spoken = tiny_model().eval(), builders.tokenizer()
    torch.manual_seed(0)
    batch, wanted, control = [], 0, 0
    for attempt in range(12):
        said = f"signal{attempt % 4}"
        prompt = [builders.USER, builders.SIGNAL + attempt % 4, builders.AGENT]
        ids, _ = builders.sample(model, prompt, 2)
        hidden = bool({builders.PAD, builders.END}.intersection(ids))
        control, wanted = control + hidden, wanted + (0 if hidden else len(ids))
        common: dict[str, Any] = {"trajectory_id": unique("t"), "agent_id": "agent"}
        made = LLMCall(
            **common, seq=1, model="tiny", sampling=Sampling(temperature=1.0), finish_reason="length",
            messages=[{"role": "user", "content": said}],  # type: ignore[list-item] - as JSON has it
            response=str(spoken.decode(ids)),
        )  # fmt: skip
        started = TrajectoryStarted(**common, seq=0, scenario_id=said, group_id="g", model_version="1.0.0")
        step = Step(**common, seq=2, step=0, reward=float(attempt % 3), done=True)
        batch.append([started, made, step, TrajectoryEnded(**common, seq=3)])
    done = bench.trained(batch, text_only="recompute")
    assert done.counts["calls_dropped"] == ({"control_token_in_response": control} if control else {})
    assert done.counts["tokens"]["retokenized"] == done.counts["tokens"]["trained"] == wanted > 0
    assert done.metrics["logp_diff_max"] < 1e-4


def test_the_ends_of_a_model_are_all_that_it_names() -> None:
    model, spoken = tiny_model(), builders.tokenizer()
    assert models.ends(model, spoken) == {builders.END}
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [builders.AGENT, builders.USER]
    assert models.ends(model, spoken) == {builders.END, builders.AGENT, builders.USER}
