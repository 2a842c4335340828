"""The process group of the ranks: where they meet, how one joins it, and what the others do in it."""

from __future__ import annotations

import gc
import pickle
from datetime import timedelta

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - its documented place

from flywheel.errors import PoisonError
from flywheel.log import get_logger
from flywheel.settings import TrainerSettings
from services.trainer import adapters, models, training
from services.trainer.protocol import Task

_log = get_logger(__name__)

_HOST = "127.0.0.1"

#: Longest wait of one rank for the others, in an exchange as well as at the start.
_PATIENCE = timedelta(minutes=30)


def meeting_place(settings: TrainerSettings) -> TCPStore:
    """Open, as rank 0, the place where the ranks meet; its ``port`` is a free one."""
    return TCPStore(_HOST, 0, settings.processes, is_master=True, timeout=_PATIENCE, wait_for_workers=False)


def join(rank: int, settings: TrainerSettings, place: TCPStore | int) -> None:
    """Wait for all ranks and become one of them, at the ``place`` or at its port."""
    if isinstance(place, int):
        place = TCPStore(_HOST, place, settings.processes, is_master=False, timeout=_PATIENCE)
    cpu = training.on_cpu(settings)
    if not cpu:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "gloo" if cpu else "nccl", store=place, rank=rank, world_size=settings.processes, timeout=_PATIENCE
    )
    torch.distributed.barrier()


def do(task: Task, settings: TrainerSettings) -> None:
    """Train with the others, as a rank beside rank 0. Raises whatever training does, but what it does to all alike."""
    base, tokenizer = models.load(task.parent, training.frozen_dtype(settings))
    training.to_device(base, settings)
    how = pickle.loads(task.how.read_bytes())
    try:
        training.train(adapters.put_on(base, settings), tokenizer, settings=settings, on_progress=_silent, **how)
    except PoisonError as error:
        _log.warning("training failed, as for all ranks", error=str(error))
    gc.collect()


def _silent(done: int, total: int) -> None:
    """Leave progress to rank 0."""
