"""A rank beside rank 0: ``python -m services.trainer.rank PARENT_PID``, started by the worker, never by hand.

It is told who it is and then its tasks on standard input, and ends with it. It has nothing to say: what came of a task
is in the weights of rank 0 too.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from typing import BinaryIO

from flywheel import log
from flywheel.errors import EXIT_FATAL
from services.trainer.processes import die_with, environment
from services.trainer.protocol import Joining, Task


def main() -> int:
    """Do tasks until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(int(sys.argv[1]))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lines = sys.stdin.buffer
    joining = Joining.model_validate_json(lines.readline())
    log.configure(f"trainer.rank{joining.rank}", joining.log_level)
    logging.captureWarnings(True)
    tasks: queue.Queue[Task] = queue.Queue()
    threading.Thread(target=_listen, args=(lines, tasks), daemon=True).start()
    os.environ.update(environment(joining.settings, joining.rank))
    from services.trainer.rank import group

    group.join(joining.rank, joining.settings, joining.port)
    while True:
        group.do(tasks.get(), joining.settings)


def _listen(lines: BinaryIO, tasks: queue.Queue[Task]) -> None:
    """Take tasks; end the process with its input, and with whatever makes it deaf."""
    try:
        for line in lines:
            tasks.put(Task.model_validate_json(line))
    except BaseException:
        log.get_logger(__name__).exception("cannot take tasks")
        os._exit(EXIT_FATAL)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
