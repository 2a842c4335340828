"""The worker process: ``python -m services.trainer.worker PARENT_PID``, started by the trainer, never by hand.

It imports torch and TRL once (seconds, hundreds of megabytes) and then does one job after another. Standard output
carries the protocol and nothing else; whatever libraries print goes to standard error, the service's log. The process
ends with its parent: when standard input ends, and on Linux also by a signal from the kernel.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from flywheel import log
from flywheel.connection_settings import S3Connection
from flywheel.errors import EXIT_FATAL, FatalError, PoisonError, TransientError
from flywheel.storage.s3 import S3ObjectStore
from services.trainer.ledger import Ledger
from services.trainer.processes import die_with, environment
from services.trainer.protocol import Done, Failed, Order, Ready, Report, Setup, Skipped

if TYPE_CHECKING:
    from services.trainer.rank.crew import Crew


def main() -> int:
    """Serve orders until standard input ends."""
    out = _take_over_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    die_with(int(sys.argv[1]))
    lines = sys.stdin.buffer
    setup = Setup.model_validate_json(lines.readline())
    log.configure("trainer.worker", setup.log_level)
    logging.captureWarnings(True)
    orders: queue.Queue[Order] = queue.Queue()
    threading.Thread(target=_listen, args=(lines, orders), daemon=True).start()

    def report(line: Report) -> None:
        out.write(line.line())
        out.flush()

    ready, crew = _warm_up(setup)
    report(ready)
    store = S3ObjectStore.from_settings(S3Connection.model_validate(setup.connections))
    while True:
        order = orders.get()
        with log.bound(job_id=order.job_id, batch_id=order.batch_id):
            answer = _obey(order, setup, store, crew, report)
            report(answer)
        if isinstance(answer, Failed) and answer.error == "unexpected":
            return EXIT_FATAL  # who knows what state we are in


def _take_over_stdout() -> BinaryIO:
    """Return the pipe to the parent, and point standard output at standard error for everybody else."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return out


def _listen(lines: BinaryIO, orders: queue.Queue[Order]) -> None:
    """Take orders; end the process with its input, and with whatever makes it deaf: its parent starts another."""
    try:
        for line in lines:
            orders.put(Order.model_validate_json(line))
    except BaseException:
        log.get_logger(__name__).exception("cannot take orders")
        os._exit(EXIT_FATAL)
    os._exit(0)  # nobody is interested any more, not even in a job half done


def _warm_up(setup: Setup) -> tuple[Ready, Crew]:
    began = time.monotonic()
    os.environ.update(environment(setup.settings))
    import torch
    from transformers.utils import logging as transformers_logging

    from services.trainer import job, training
    from services.trainer.rank.crew import Crew

    transformers_logging.disable_progress_bar()
    try:
        training.require_machine(setup.settings)
    except FatalError as error:
        log.get_logger(__name__).error("this machine is not what the settings ask for", error=str(error))
        sys.exit(EXIT_FATAL)
    crew = Crew(setup.settings, setup.log_level)
    if setup.settings.threads:
        torch.set_num_threads(setup.settings.threads)
    gc.collect()
    gc.freeze()  # Trainer collects garbage at every run; what was imported is none
    return Ready(import_seconds=round(time.monotonic() - began, 3), libraries=job.libraries()), crew


def _obey(
    order: Order, setup: Setup, store: S3ObjectStore, crew: Crew, report: Callable[[Report], None]
) -> Done | Skipped | Failed:
    from services.trainer import job

    ledger = Ledger()
    try:
        return job.run(order, setup.settings, store, setup.models, ledger, report, crew)
    except PoisonError as error:
        return Failed(error="poison", reason=error.reason, message=str(error), counts=ledger.as_dict())
    except TransientError as error:
        return Failed(error="transient", reason="transient", message=str(error))
    except FatalError as error:
        return Failed(error="fatal", reason="fatal", message=str(error))
    except Exception as error:
        log.get_logger(__name__).exception("unexpected error in a job")
        message = f"{type(error).__name__}: {error}"
        return Failed(error="unexpected", reason=type(error).__name__, message=message, counts=ledger.as_dict())


if __name__ == "__main__":
    sys.exit(main())
