"""What the gateway shows to whom: hostile text, the token, its own metrics, and readers while its parts are away."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from flywheel.events import LLMCall, Reward, RewardKind, Step
from flywheel.stream.producer import Producer
from flywheel.topics import MODELS
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.recorded import START, play, store_play, store_row
from tests.support.waiting import eventually
from tests.support.web import api, get

pytestmark = pytest.mark.stack


HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7*7 }} \u202e"


async def test_what_agents_write_never_becomes_markup(gateway: ServiceProcess, pool: asyncpg.Pool, name: str) -> None:
    evil = f"{name}<script>alert(1)</script>"
    events = play(
        evil, texts=HOSTILE, agent="<img/src=x/onerror=alert(1)>", version='"><svg/onload=alert(1)>',
        scenario_id="<b>bold</b>", group_id="'><i>", channel=f"<u>{name}</u>", reward=0.5,
    )  # fmt: skip
    common: dict[str, Any] = {"trajectory_id": evil, "agent_id": "a", "time": START}
    events += [
        Reward(**common, seq=4, reward_kind=RewardKind.HUMAN, name="<b>", value=1, source=HOSTILE, reason=HOSTILE),
        LLMCall(**common, seq=5, model=HOSTILE, system_prompt=HOSTILE, user_prompt=HOSTILE, error=HOSTILE),
        Step(**common, seq=6, step=1, observation=HOSTILE, environment_state={HOSTILE: HOSTILE}, reasoning=HOSTILE),
    ]
    await store_play(pool, events)
    await store_row(
        pool, "acks", deployment_id=HOSTILE, agent_id=HOSTILE, channel=HOSTILE, version=HOSTILE, status="failed",
        error=HOSTILE, running_version=HOSTILE, acked_at=START,
    )  # fmt: skip
    await store_row(
        pool, "batches", batch_id=f"{HOSTILE}{name}", channel=HOSTILE, status="ready", rule=HOSTILE, trajectories=1,
        groups=1,
    )  # fmt: skip

    async def charted() -> bool:
        return "&lt;svg/onload=alert(1)&gt;, training play" in (await get(gateway, "/")).text

    await eventually(charted)
    for path in ("/", f"/trajectories/{quote(evil, safe='')}", f"/trajectories/{quote('none<script>', safe='')}"):
        page = await get(gateway, path)
        assert page.status in (200, 404)
        for markup in ("<script", "<img", "<svg/onload", "<b>bold", "<i>", "<u>", "onerror=alert(1)>"):
            assert markup not in page.text, (path, markup)
        assert "script" not in page.headers["content-security-policy"]
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
    assert "&lt;script&gt;alert" in (await get(gateway, "/")).text


async def test_with_a_token_everything_but_probes_asks_for_it(service_process: ServiceProcesses) -> None:
    async with service_process("gateway", FLYWHEEL_GATEWAY_TOKEN="s3cret-ü") as guarded:
        for path in ("/healthz", "/readyz", "/metrics", "/static/style.css"):
            assert (await get(guarded, path)).status == 200
        basic = base64.b64encode("any:s3cret-ü".encode()).decode()
        for path in ("/", "/api/v1/summary", "/docs", "/openapi.json", "/trajectories/x", "/nothing"):
            for wrong in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Basic %%%"},
                {"Authorization": "x"},
            ):
                answer = await get(guarded, path, headers=wrong)
                assert answer.status == 401
                assert "Bearer" in answer.json["detail"]
                assert "bearer" in answer.headers["www-authenticate"].lower()
        assert (await get(guarded, "/api/v1/summary", headers={"Authorization": f"Basic {basic}"})).status == 200


async def test_metrics_count_by_route_template(gateway: ServiceProcess, name: str) -> None:
    await get(gateway, f"/api/v1/trajectories/{name}")
    await get(gateway, f"/api/v1/nothing/{name}")
    text = (await get(gateway, "/metrics")).text
    assert name not in text
    route = 'route="/api/v1/trajectories/{trajectory_id:path}",status="404"'
    assert f'flywheel_gateway_requests_total{{method="GET",{route}}}' in text
    assert 'route="unmatched",status="404"' in text


async def test_the_interface_describes_itself(gateway: ServiceProcess) -> None:
    viewer = await get(gateway, "/docs")
    assert viewer.status == 200
    assert "//" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', viewer.text)), "it loads nothing from elsewhere"
    for part in re.findall(r'(?:src|href)="([^"]*\.(?:js|css))"', viewer.text):
        assert (await get(gateway, part)).status == 200
    described = (await get(gateway, "/openapi.json")).json["paths"]
    assert "/api/v1/export/trajectories.jsonl" in described
    assert "/api/v1/trajectories/{trajectory_id}" in {path.replace(":path", "") for path in described}


async def test_dead_letters_and_lag_are_known(gateway: ServiceProcess, connections: Any, pool: asyncpg.Pool) -> None:
    producer = Producer(connections.kafka)
    await producer.start()
    await producer.send_and_wait(MODELS.dead, "k", b"{}")
    await producer.send_and_wait(MODELS.name, "k", b"{}")
    await producer.stop()
    await store_row(pool, "stream_offsets", consumer="counted", topic=MODELS.name, partition=0, next_offset=0)

    async def known() -> bool:
        summary = await api(gateway, "summary")
        dead, lag = summary["dead_letters"] or {}, summary["lag"] or {}
        return dead.get(MODELS.dead) == 1 and lag.get(f"counted {MODELS.name}") == 1

    await eventually(known)


async def test_while_the_database_is_away_readers_are_told_to_come_again(
    service_process: ServiceProcesses, stack: Any
) -> None:
    away = service_process("gateway", FLYWHEEL_POSTGRES="postgresql://postgres@127.0.0.1:1/flywheel")
    await away.start(ready=False)
    await eventually(lambda: asyncio.to_thread(lambda: away.get("/healthz")[0] == 200))
    for path in ("/api/v1/summary", "/api/v1/trajectories", "/api/v1/export/trajectories.jsonl", "/"):
        answer = await get(away, path)
        assert (answer.status, answer.headers["retry-after"]) == (503, "2"), path
    assert (await get(away, "/readyz")).status == 503
    assert await away.stop() == 0
