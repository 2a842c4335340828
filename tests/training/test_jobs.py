"""One job, from stored play to stored model: text that is imitated, groups of one, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flywheel import artifacts
from flywheel.errors import PoisonError
from flywheel.events import Event, LLMCall
from services.trainer import models
from services.trainer.baseline.estimate import Baseline, Observed
from services.trainer.protocol import Done, Skipped
from tests.support.training import SIZES, played
from tests.training.bench import Bench
from tests.training.builders import tiny_model

pytestmark = pytest.mark.torch

LOST: dict[str, Any] = {"completion_logprobs": None, "model_version": "1.0.0"}
ROWS = sum(SIZES)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sampled_logp(model: Any, batch: list[list[Event]], better: bool) -> float:
    """Mean log-probability of what was sampled in the attempts above or below the mean of their group."""
    groups: dict[str, list[list[Event]]] = {}
    for events in batch:
        groups.setdefault(str(events[0].model_dump()["group_id"]), []).append(events)
    found: list[torch.Tensor] = []
    for group in groups.values():
        rewards = [sum(event.model_dump().get("reward") or 0.0 for event in events) for events in group]
        for events, reward in zip(group, rewards, strict=True):
            if len(group) == 1 or (reward > sum(rewards) / len(rewards)) != better:
                continue
            for call in (event for event in events if isinstance(event, LLMCall)):
                prompt, completion = call.prompt_token_ids or [], call.completion_token_ids or []
                with torch.no_grad():
                    scores = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
                found += [scores[len(prompt) + i - 1, token] for i, token in enumerate(completion)]
    return torch.stack(found).mean().item()


def test_text_that_another_version_sampled_is_imitated_where_it_was_rewarded(bench: Bench) -> None:
    batch = played(**LOST)
    done = bench.train(batch, "1.1.0", text_only="supervised", supervised_weight=1.0, iterations=20, learning_rate=1e-3)
    assert isinstance(done, Done)
    counts = done.counts
    assert counts["calls"]["supervised"] == counts["calls"]["usable"] == counts["calls"]["read"]
    assert counts["tokens"]["supervised"] == counts["tokens"]["trained"] > 0
    assert counts["rows"]["supervised"] == counts["rows"]["used"] == ROWS - counts["rows_dropped"]["not_rewarded"]
    assert counts["rows_dropped"]["not_rewarded"] >= 3
    assert "logp_diff_mean" not in done.metrics, "no figure of ratios where there are none"
    assert done.metrics["supervised_nll"] > 0
    lineage = artifacts.read_manifest(bench.store, done.artifact).lineage
    assert lineage["settings"]["supervised_weight"] == 1.0
    assert lineage["counts"]["by_scenario"]["s"]["rows.supervised"] == counts["rows"]["supervised"]
    before, after = tiny_model().eval(), bench.model(done).eval()
    assert sampled_logp(after, batch, True) > sampled_logp(before, batch, True) + 0.05
    assert sampled_logp(after, batch, True) - sampled_logp(before, batch, True) > (
        sampled_logp(after, batch, False) - sampled_logp(before, batch, False)
    )


def test_beside_play_with_log_probabilities_it_is_only_a_part(bench: Bench) -> None:
    batch = [*played("1.1.0"), *played(**LOST)]
    done = bench.train(batch, "1.1.0", text_only="supervised")
    assert isinstance(done, Done)
    assert 0 < done.counts["tokens"]["supervised"] < done.counts["tokens"]["trained"]
    assert done.metrics["logp_diff_max"] < 1e-4, "of the tokens with a ratio alone"
    assert done.counts["tokens_by_version"] == {
        "1.0.0": done.counts["tokens"]["supervised"],
        "1.1.0": done.counts["tokens"]["trained"] - done.counts["tokens"]["supervised"],
    }


def test_text_without_a_rewarded_attempt_teaches_nothing(bench: Bench) -> None:
    answer = bench.train(played(sizes=(1, 1), **LOST), "1.1.0", text_only="supervised")
    assert isinstance(answer, Skipped)
    assert answer.counts["rows_dropped"] == {"not_rewarded": 2}
    with pytest.raises(PoisonError, match="policy_not_loaded"):
        bench.train(played(**LOST), "1.1.0", text_only="recompute")


KNOWN = Baseline().after(Observed.of([0.0, 1.0] * 20), 1.0)


def test_groups_of_one_learn_from_what_their_scenario_was_worth_before(bench: Bench) -> None:
    batch = played(sizes=(1, 1, 1))
    nothing = bench.train(batch)
    assert isinstance(nothing, Skipped)
    assert nothing.message.startswith("nothing to learn: every advantage is 0 in 3 trajectories")
    (told,) = nothing.told.observed["recorded"].values()
    assert told.count == 3, "the next batch shall know"

    done = bench.train(batch, baselines={"recorded": {"s": KNOWN, "other": KNOWN}})
    assert isinstance(done, Done)
    assert done.counts["groups"] == {
        "compared": 0, "singletons": 0, "singletons_by_baseline": 3, "without_spread": 0
    }  # fmt: skip
    assert done.told == nothing.told
    lineage = artifacts.read_manifest(bench.store, done.artifact).lineage
    assert lineage["baselines"] == {"recorded": {"s": KNOWN.model_dump()}}
    again = bench.train(batch, baselines={"recorded": {"s": KNOWN}})
    assert isinstance(again, Done)
    for one, other in zip(bench.model(done).parameters(), bench.model(again).parameters(), strict=True):
        assert torch.equal(one, other)

    skipped = bench.train(batch, baselines={"recorded": {"s": KNOWN}}, singletons="skip")
    assert isinstance(skipped, Skipped)
    assert skipped.told.observed == {}


def test_scores_of_a_judge_make_no_baseline(bench: Bench) -> None:
    batch = played(sizes=(4, 1))
    names = [events[0].trajectory_id for events in batch]
    scores = {"values": dict.fromkeys(names, 0.5) | {names[0]: 0.9}, "scorers": dict.fromkeys(names, "ruler")}
    done = bench.train(batch, baselines={"ruler": {"s": KNOWN}}, scores=scores)
    assert isinstance(done, Done)
    assert done.told.observed == {}
    assert done.counts["groups"]["singletons_by_baseline"] == 0


def test_adapters_make_a_whole_model_that_the_next_job_trains_again(bench: Bench) -> None:
    done = bench.train(played(), tuning="lora", lora_rank=4, learning_rate=1e-2)
    assert isinstance(done, Done)
    files = {file.path for file in artifacts.read_manifest(bench.store, done.artifact).files}
    assert {"model.safetensors", "tokenizer.json", "adapter/adapter_model.safetensors"} <= files
    assert artifacts.read_manifest(bench.store, done.artifact).lineage["settings"]["lora_rank"] == 4
    assert 0 < done.metrics["weights_moved"] < 1, "embeddings and head have no adapter"
    bench.artifact = done.artifact
    second = bench.train(played(), tuning="lora", lora_keep=False)
    assert isinstance(second, Done)
    files = {file.path for file in artifacts.read_manifest(bench.store, second.artifact).files}
    assert not any(name.startswith(models.ADAPTER) for name in files)
    bench.artifact = second.artifact
    assert isinstance(bench.train(played(), precision="bfloat16", save_dtype="bfloat16"), Done)
