"""Rank 0's side: the other ranks as its children."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flywheel.errors import EXIT_FATAL
from flywheel.log import get_logger
from flywheel.settings import TrainerSettings
from services.trainer.protocol import Joining, Task
from services.trainer.rank import group

_log = get_logger(__name__)


class Crew:
    """The other ranks, if the settings ask for some. They wait for a task, or train with us."""

    def __init__(self, settings: TrainerSettings, log_level: str) -> None:
        """Start the others and wait until all have met. When one of them ends, this process does."""
        self._others: list[subprocess.Popen[bytes]] = []
        if settings.processes == 1:
            return
        place = group.meeting_place(settings)
        for rank in range(1, settings.processes):
            other = subprocess.Popen(
                [sys.executable, "-m", "services.trainer.rank", str(os.getpid())], stdin=subprocess.PIPE
            )
            self._others.append(other)
            self._tell(other, Joining(rank=rank, port=place.port, settings=settings, log_level=log_level).line())
            threading.Thread(target=_end_with, args=(other, rank), daemon=True).start()
        group.join(0, settings, place)
        _log.info("ranks have met", processes=settings.processes, pids=[other.pid for other in self._others])

    @contextmanager
    def training(self, parent: Path, **how: Any) -> Iterator[None]:
        """Have the others train the model in the folder ``parent`` while we do. ``how``: what we call
        :func:`services.trainer.training.train` with, beside model and tokenizer.
        """
        with tempfile.TemporaryDirectory(prefix="flywheel-task-") as folder:
            if self._others:
                task = Path(folder) / "task"
                task.write_bytes(pickle.dumps(how))
                for other in self._others:
                    self._tell(other, Task(parent=parent, how=task).line())
            yield

    @staticmethod
    def _tell(other: subprocess.Popen[bytes], line: bytes) -> None:
        assert other.stdin is not None
        other.stdin.write(line)
        other.stdin.flush()


def _end_with(other: subprocess.Popen[bytes], rank: int) -> None:
    """End this process when a rank has ended: what it was to compute is missing, and the rest would wait for it."""
    status = other.wait()
    _log.error("a rank died, and all end with it", rank=rank, status=status)
    os._exit(EXIT_FATAL)
