"""The worker process while it listens: it never goes on deaf."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flywheel.errors import EXIT_FATAL
from tests.support.processes import ROOT, service_environment

LISTENING = """
import queue, sys, threading
from services.trainer import worker
listener = threading.Thread(target=worker._listen, args=(sys.stdin.buffer, queue.Queue()))
listener.start()
listener.join()
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("said", "status"),
    [(b"", 0), (b'{"job_id": 1}\n', EXIT_FATAL), (b"\xff\n", EXIT_FATAL)],
    ids=["its-parent-is-gone", "no-order", "no-text"],
)
def test_the_worker_ends_with_its_input_and_with_what_it_cannot_read(said: bytes, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], input=said, cwd=ROOT, env=service_environment({}), capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr.decode()
