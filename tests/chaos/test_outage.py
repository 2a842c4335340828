"""A short outage of each server; ``python -m tests.chaos.outage --minutes 10`` makes long ones."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.chaos.outage import Options, outages, report
from tests.support.processes import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]


async def test_servers_that_go_away_are_waited_out_alive_unready_and_flat_in_memory() -> None:
    options = Options(var=ROOT / "var" / "tests" / f"outage-{os.getpid()}")
    outcome = await outages(options)
    assert outcome.ok, json.dumps(report(outcome, options), indent=2)
    shutil.rmtree(options.var)
