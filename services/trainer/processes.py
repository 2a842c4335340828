"""What the processes that train have in common: the environment they need, and that none outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from flywheel.errors import EXIT_FATAL
from flywheel.settings import TrainerSettings

_PR_SET_PDEATHSIG = 1


def environment(settings: TrainerSettings, rank: int = 0) -> dict[str, str]:
    """Return the variables that must be set before torch is loaded."""
    found = {
        # Threads that spin while they wait for each other, on cores that they share with the rest of the machine, made
        # training ten times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    if settings.processes == 1:
        return found
    world, cores = str(settings.processes), max(1, (os.cpu_count() or 1) // settings.processes)
    # By these accelerate tells that it is one of several. It would count threads anew for each job.
    found |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
        "OMP_NUM_THREADS": str(settings.threads or cores),
    }  # fmt: skip
    # A container that has no name for itself in its network would not find its own processes.
    return found | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})


def die_with(parent: int) -> None:
    """End this process when its parent does: on Linux by a signal from the kernel, at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_FATAL)  # it died before we could ask
