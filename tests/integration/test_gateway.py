"""The gateway as a process, over rows in the real Postgres, with the real Kafka beside it."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlencode

import asyncpg
import pytest

from flywheel.events import Event, Failure, TrajectoryEnded
from tests.support.processes import ServiceProcess
from tests.support.recorded import START, play, store_play, store_row
from tests.support.waiting import eventually
from tests.support.web import api, every, get

pytestmark = pytest.mark.stack


async def test_an_empty_database_is_shown_as_empty(gateway: ServiceProcess) -> None:
    summary = await api(gateway, "summary")
    assert (summary["events"], summary["trajectories"], summary["channels"]) == (0, {}, [])
    for listing in ("trajectories", "batches", "jobs", "models", "deployments", "acks", "agents"):
        assert await api(gateway, listing) == {"items": [], "next": None}
    page = await get(gateway, "/")
    assert page.status == 200
    assert "Nothing recorded yet" in page.text
    export = await get(gateway, "/api/v1/export/trajectories.jsonl")
    assert (export.status, export.text) == (200, "")


async def test_a_trajectory_comes_back_whole_and_its_events_as_they_arrived(
    gateway: ServiceProcess, pool: asyncpg.Pool, name: str
) -> None:
    events = play(name, reward=0.25, unknown_field={"kept": [1, 2]})
    whole = await store_play(pool, events)
    read = await api(gateway, f"trajectories/{name}")
    assert read == json.loads(whole.model_dump_json())
    assert read["steps"][0]["llm_calls"][0]["completion_token_ids"] == [3, 4]
    raw = await every(gateway, f"trajectories/{name}/events", limit=3)
    assert [event["seq"] for event in raw] == [0, 1, 2, 3]
    assert [event["body"] for event in raw] == [event.model_dump(mode="json", exclude_none=True) for event in events]
    assert raw[0]["body"]["unknown_field"] == {"kept": [1, 2]}


async def test_what_outcomes_gave_is_shown_with_its_step_and_counts_in_every_face(
    gateway: ServiceProcess, pool: asyncpg.Pool, name: str
) -> None:
    await store_play(pool, play(name, agent=name, reward=None))
    entry = {"trajectory_id": name, "step": 0, "scope": "window", "key": "2026-11-23T04", "subject": "m-7"}
    await store_row(pool, "reward_entries", **entry, name="outcome", source="oracle", value=2.5)
    await pool.execute("UPDATE trajectories SET outcome_sum = 2.5, outcome_count = 1 WHERE trajectory_id = $1", name)
    read = await api(gateway, f"trajectories/{name}")
    assert read["total_reward"] == 2.5
    (reward,) = read["steps"][0]["rewards"]
    assert (reward["reward_kind"], reward["value"], reward["subject"], reward["step"]) == ("outcome", 2.5, "m-7", 0)
    (row,) = await every(gateway, "trajectories", agent=name)
    assert row["total_reward"] == 2.5
    export = await get(gateway, "/api/v1/export/trajectories.jsonl", agent=name)
    assert [json.loads(line)["reward"] for line in export.text.splitlines()] == [2.5]
    page = await get(gateway, f"/trajectories/{name}")
    assert page.status == 200
    assert "m-7" in page.text


async def test_an_open_trajectory_with_holes_says_so(gateway: ServiceProcess, pool: asyncpg.Pool, name: str) -> None:
    events = play(name, ended=False)
    await store_play(pool, [events[0], events[2]])
    read = await api(gateway, f"trajectories/{name}")
    assert (read["status"], read["missing"], read["missing_count"]) == ("open", [1], 1)
    (row,) = (await api(gateway, "trajectories", group="group-1", status="open"))["items"]
    assert (row["trajectory_id"], row["missing"]) == (name, 1)


@pytest.mark.parametrize("odd", ["with/slash", "a%2Fb", "q?x=1&y#z", "../../etc", "dots...", "'quoted\"<b>"])
async def test_any_identifier_can_be_asked_for(
    gateway: ServiceProcess, pool: asyncpg.Pool, name: str, odd: str
) -> None:
    trajectory_id = f"{name}{odd}"
    await store_play(pool, play(trajectory_id))
    path = quote(trajectory_id, safe="")
    assert (await api(gateway, f"trajectories/{path}"))["trajectory_id"] == trajectory_id
    assert len((await api(gateway, f"trajectories/{path}/events"))["items"]) == 4
    assert (await get(gateway, f"/trajectories/{path}")).status == 200


async def test_filters_hold_together(gateway: ServiceProcess, pool: asyncpg.Pool, name: str) -> None:
    for number in range(6):
        await store_play(
            pool,
            play(
                f"{name}-{number}", agent=name, reward=number / 10 if number else None, version=f"1.{number % 2}.0",
                split="held_out" if number % 3 == 0 else "train", scenario_id=f"s-{number % 2}", channel=name,
            ),
        )  # fmt: skip

    async def found(**filters: Any) -> list[int]:
        return sorted(int(r["trajectory_id"][-1]) for r in await every(gateway, "trajectories", agent=name, **filters))

    assert await found() == [0, 1, 2, 3, 4, 5]
    assert await found(split="held_out") == [0, 3]
    assert await found(model_version="1.1.0", split="train") == [1, 5]
    assert await found(min_reward=0.2, max_reward=0.4) == [2, 3, 4]
    assert await found(scenario="s-0", channel=name, window="2026-11-23T04", status="completed") == [0, 2, 4]
    assert await found(status="open") == []


async def test_pages_hold_every_row_once_while_rows_are_inserted(
    gateway: ServiceProcess, pool: asyncpg.Pool, name: str
) -> None:
    before = {f"{name}-{number:03d}" for number in range(60)}
    # Many share one instant: the order must still be total.
    for trajectory_id in sorted(before):
        await store_play(pool, play(trajectory_id, agent=name))
    await pool.execute(
        "UPDATE trajectories SET first_ingested_at = date_trunc('second', first_ingested_at) WHERE agent_id = $1", name
    )

    async def insert() -> None:
        for number in range(40):
            await store_play(pool, play(f"{name}-new-{number}", agent=name))

    inserting = asyncio.create_task(insert())
    seen = [row["trajectory_id"] for row in await every(gateway, "trajectories", agent=name, limit=7)]
    await inserting
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


async def test_a_cursor_of_other_filters_is_refused(gateway: ServiceProcess, pool: asyncpg.Pool, name: str) -> None:
    for number in range(2):
        await store_play(pool, play(f"{name}-{number}", agent=name))
    cursor = (await api(gateway, "trajectories", agent=name, limit=1))["next"]
    wrong: list[dict[str, str]] = [{"agent": "other", "cursor": cursor}, {"cursor": cursor}, {"cursor": "garbage"}]
    for query in wrong:
        answer = await get(gateway, f"/api/v1/trajectories?{urlencode(query)}")
        assert answer.status == 422
        assert "first page" in answer.json["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/trajectories/none", 404), ("/api/v1/trajectories/none/events", 404), ("/api/v1/batches/none", 404),
        ("/api/v1/models/9.9.9", 404), ("/api/v1/nothing", 404), ("/api/v1/trajectories?limit=501", 422),
        ("/api/v1/trajectories?agnet=a", 422), ("/api/v1/trajectories?agent=%00", 422),
        ("/api/v1/trajectories/nul%00", 422), ("/api/v1/export/trajectories.jsonl?format=csv", 422),
        ("/api/v1/models/1.0.0?channel=a%20b", 422),
    ],
)  # fmt: skip
async def test_errors_are_problems_that_say_what_to_do(gateway: ServiceProcess, path: str, status: int) -> None:
    answer = await get(gateway, path)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert "/docs" in answer.json["detail"] or "/api/v1" in answer.json["detail"]


async def test_lineage_leads_from_a_model_to_its_play_and_to_its_agents(
    gateway: ServiceProcess, pool: asyncpg.Pool, name: str
) -> None:
    played = await store_play(pool, play(f"{name}-played", version="1.0.0", channel=name, reward=0.5))
    await store_play(pool, play(f"{name}-held", version="1.1.0", channel=name, reward=1.0, split="held_out"))
    await store_row(
        pool, "batches", batch_id=name, channel=name, status="ready", rule="1 trajectory", trajectories=1, groups=1
    )
    await store_row(
        pool, "archive_queue", trajectory_id=played.trajectory_id, revision=1, latest_revision=2, channel=name,
        group_id="g", batch_id=name,
    )  # fmt: skip
    model: dict[str, Any] = {"channel": name, "artifact": '{"bytes": 3}', "trained_at": START}
    await store_row(
        pool, "models", model_id=f"{name}-0", version="1.0.0", number=1, origin="imported", base_model="tiny", **model
    )
    await store_row(
        pool, "models", model_id=f"{name}-1", version="1.1.0", number=2, origin="trained", generation=1,
        parent_version="1.0.0", batch_id=name, job_id=name, metrics='{"loss": 0.1}', **model,
    )  # fmt: skip
    await store_row(
        pool, "training_jobs", job_id=name, batch_id=name, channel=name, status="completed", model_id=f"{name}-1",
        manifest="m", manifest_sha256="0",
    )  # fmt: skip
    await store_row(
        pool, "deployments", deployment_id=name, channel=name, model_id=f"{name}-1", version="1.1.0", number=2,
        status="active", reason="test",
    )  # fmt: skip
    for agent, status, running in (("a", "loaded", "1.1.0"), ("b", "failed", "1.0.0")):
        await store_row(
            pool, "acks", deployment_id=name, agent_id=f"{name}-{agent}", channel=name, version="1.1.0", status=status,
            running_version=running, acked_at=START,
        )  # fmt: skip

    whole = await api(gateway, "models/1.1.0", channel=name)
    assert (whole["deployed"], whole["metrics"], whole["artifact"]) == (True, {"loss": 0.1}, {"bytes": 3})
    assert [m["trajectory_id"] for m in whole["lineage"]["trajectories"]] == [played.trajectory_id]
    assert whole["lineage"]["trajectories"][0]["latest_revision"] == 2
    assert (whole["lineage"]["ancestors"], whole["lineage"]["agents"]) == (["1.0.0"], [f"{name}-a"])
    assert [(d["loaded"], d["failed"]) for d in whole["deployments"]] == [(1, 1)]
    assert (await api(gateway, "models/1.0.0", channel=name))["lineage"]["children"] == ["1.1.0"]

    batch = await api(gateway, f"batches/{name}")
    assert (len(batch["members"]), batch["job"]["version"]) == (1, "1.1.0")
    agents = {a["agent_id"]: a["running_version"] for a in await every(gateway, "agents", limit=1)}
    assert (agents[f"{name}-a"], agents[f"{name}-b"]) == ("1.1.0", "1.0.0")
    assert {ack["status"] for ack in await every(gateway, "acks", limit=1) if ack["channel"] == name} == {
        "loaded", "failed",
    }  # fmt: skip

    async def shown() -> Any:
        summary = await api(gateway, "summary")
        channels = [c for c in summary["channels"] if c["channel"] == name]
        return channels and summary

    summary = await eventually(shown)
    (channel,) = [c for c in summary["channels"] if c["channel"] == name]
    assert (channel["version"], channel["agents"]) == ("1.1.0", 1)
    rewards = [r for r in summary["reward_by_version"] if r["channel"] == name]
    assert [(r["version"], r["number"], r["split"], r["mean"]) for r in rewards] == [
        ("1.0.0", 1, "train", 0.5), ("1.1.0", 2, "held_out", 1.0),
    ]  # fmt: skip


async def test_failures_of_infrastructure_say_nothing_of_a_version(
    gateway: ServiceProcess, pool: asyncpg.Pool, name: str
) -> None:
    events = play(f"{name}-broken", reward=-1.0, channel=name)
    end = events[-1]
    assert isinstance(end, TrajectoryEnded)
    failed: list[Event] = [
        *events[:-1], end.model_copy(update={"status": "error", "failure": Failure.INFRASTRUCTURE}),
    ]  # fmt: skip
    await store_play(pool, failed)
    await store_play(pool, play(f"{name}-fine", reward=0.5, channel=name))

    async def rows() -> Any:
        found = (await api(gateway, "summary"))["reward_by_version"]
        return [row for row in found if row["channel"] == name]

    (row,) = await eventually(rows)
    assert (row["trajectories"], row["mean"]) == (1, 0.5)


async def test_the_export_has_a_line_for_each_closed_trajectory_with_a_reward(
    gateway: ServiceProcess, pool: asyncpg.Pool, name: str
) -> None:
    for number in range(45):  # more than two chunks
        await store_play(pool, play(f"{name}-{number:02d}", agent=name, reward=number / 10))
    await store_play(pool, play(f"{name}-open", agent=name, ended=False))
    await store_play(pool, play(f"{name}-unrewarded", agent=name, reward=None))
    export = await get(gateway, "/api/v1/export/trajectories.jsonl", agent=name)
    assert export.headers["content-type"] == "application/x-ndjson"
    assert export.headers["x-flywheel-without-reward"] == "1"
    lines = [json.loads(line) for line in export.text.splitlines()]
    assert [line["metadata"]["trajectory_id"] for line in lines] == [f"{name}-{number:02d}" for number in range(45)]
    assert lines[3]["reward"] == 0.3
    assert lines[3]["messages_and_choices"][1]["logprobs"]["content"][0]["token"] == "token_id:3"
    some = await get(gateway, "/api/v1/export/trajectories.jsonl", agent=name, min_reward=4.0, format="art")
    assert len(some.text.splitlines()) == 5


async def test_an_export_whose_reader_leaves_frees_its_connection(
    gateway: ServiceProcess, pool: asyncpg.Pool, name: str
) -> None:
    for number in range(60):
        await store_play(pool, play(f"{name}-{number}", agent=name, texts="long " * 20_000))

    def leave() -> None:
        url = f"{gateway.address}/api/v1/export/trajectories.jsonl?agent={name}"
        with urllib.request.urlopen(url, timeout=60) as response:
            response.read(1000)

    for _ in range(4):  # more than may run at once
        await asyncio.to_thread(leave)

    async def freed() -> bool:
        answer = await get(gateway, "/api/v1/export/trajectories.jsonl", agent=f"{name}-nobody")
        return answer.status == 200

    await eventually(freed)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in trans%'"

    async def none_left() -> bool:
        return await pool.fetchval(idle) == 0

    await eventually(none_left)
