"""Several processes learn what one learns, and all end together."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from flywheel.settings import TrainerSettings
from services.trainer import adapters, models, training
from tests.support.processes import ROOT, service_environment
from tests.training.builders import drifted, recorded_rows, save, supervised_rows, tiny_model

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

#: Two imports of torch and TRL side by side, on a machine that may run every test at once.
WITHIN_S = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has moved on, rows that it was trained to play, and rows without log-probabilities."""
    folder = tmp_path_factory.mktemp("ranks")
    model = tiny_model().eval()
    save(drifted(model), folder / "parent")
    (folder / "rows").write_bytes(pickle.dumps([*recorded_rows(model, [3, 5, 1, 8, 4]), *supervised_rows(model, 3)]))
    return folder


def settings_of(**values: Any) -> TrainerSettings:
    common = {"micro_batch": 5, "accumulation": 2, "micro_tokens": 40, "learning_rate": 1e-3, "iterations": 2}
    return TrainerSettings(device="cpu", **{**common, "beta": 0.05, "threads": 1, **values})


@contextmanager
def started(folder: Path, **values: Any) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Rank 0, when all have met, and the others."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.together", str(folder), settings_of(**values).model_dump_json()],
        cwd=ROOT, env=service_environment({}), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    finally:
        process.kill()
        process.communicate()


def together(folder: Path, **values: Any) -> dict[str, Any]:
    with started(folder, **values) as (process, _):
        _, log = process.communicate("\n", timeout=WITHIN_S)
        assert process.returncode == 0, log
    return torch.load(folder / "done", weights_only=True)


def alone(folder: Path, **values: Any) -> dict[str, Any]:
    settings, rows = settings_of(**values), pickle.loads((folder / "rows").read_bytes())
    base, words = models.load(folder / "parent")
    model = adapters.put_on(base, settings)
    figures = training.train(model, words, rows, settings, lambda done, total: None)
    return {"weights": {name: one.detach() for name, one in model.named_parameters()}, "figures": figures}


@pytest.mark.parametrize("values", [{}, {"tuning": "lora", "lora_rank": 4}], ids=["full", "lora"])
def test_two_learn_what_one_learns(values: dict[str, Any], folder: Path) -> None:
    one, both = alone(folder, **values), together(folder, processes=2, **values)
    for name, weights in both["weights"].items():
        torch.testing.assert_close(weights, one["weights"][name], atol=1e-5, rtol=0)
    for name in ("loss", "entropy", "kl", "clip_share", "grad_norm", "supervised_nll", "logp_diff_mean", "steps"):
        assert both["figures"][name] == pytest.approx(one["figures"][name], abs=1e-5), name
    assert both["figures"]["grad_norm"] > 0.1


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=30)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_all_end_when_one_dies_while_they_train(folder: Path) -> None:
    with started(folder, processes=3, iterations=100_000) as (process, others):
        assert len(others) == 2
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        busy = others[0].cpu_times().user + 2
        while others[0].cpu_times().user < busy:
            assert process.poll() is None
        others[0].kill()
        assert process.wait(timeout=60) != 0
        assert gone(others)


def test_none_outlives_its_parent(folder: Path) -> None:
    with started(folder, processes=2) as (process, others):
        process.kill()
        process.wait(timeout=60)
        assert gone(others)
