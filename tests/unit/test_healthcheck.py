"""What a container's health check says of a service that answers, one that is not well, and one that is not there."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from aiohttp import web

from tests.support.ports import free_port
from tests.support.processes import ROOT, service_environment


async def ask(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flywheel.healthcheck", *arguments,
        cwd=ROOT, env=service_environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_it_is_well_when_the_answer_is_200_and_says_what_is_wrong_otherwise() -> None:
    async def ready(_: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def waiting(_: web.Request) -> web.Response:
        return web.json_response({"ok": False, "problems": {"kafka": "no broker"}}, status=503)

    app = web.Application()
    app.add_routes([web.get("/ready", ready), web.get("/waiting", waiting)])
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        assert await ask(f"http://127.0.0.1:{port}/ready") == (0, "")
        status, said = await ask(f"http://127.0.0.1:{port}/waiting")
        assert status == 1 and "503" in said and "no broker" in said and said.count("\n") == 1
    finally:
        await runner.cleanup()
    status, said = await ask(f"http://127.0.0.1:{port}/ready")
    assert status == 1 and "refused" in said


async def test_wrong_usage_is_told_apart() -> None:
    status, said = await ask()
    assert status == 2 and said.startswith("usage: ")
    status, said = await ask("not a url")
    assert status == 1 and "Traceback" not in said
