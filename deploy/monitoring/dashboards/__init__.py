"""The dashboards, and their expressions for whoever wants to ask them of a real Prometheus."""

from __future__ import annotations

from deploy.monitoring.dashboards.board import Board
from deploy.monitoring.dashboards.loop import LOOP
from deploy.monitoring.dashboards.models import GATEWAY, ROLLOUT, TRAINING
from deploy.monitoring.dashboards.platform import PLATFORM
from deploy.monitoring.dashboards.recording import ARCHIVER, RECORDER

BOARDS: tuple[Board, ...] = (LOOP, RECORDER, ARCHIVER, TRAINING, ROLLOUT, GATEWAY, PLATFORM)
