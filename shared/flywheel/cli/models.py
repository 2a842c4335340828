"""``flywheel model``: bring a model into the loop from a folder, and see what is registered."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flywheel.messages import ModelUpdate
    from flywheel.settings import Connections

#: Where weights are looked for. Pickles (``pytorch_model*.bin``) run code when they are loaded: they are not taken.
WEIGHTS = "*.safetensors"

_GATEWAY_TIMEOUT_S = 10.0

models = typer.Typer(name="model", help="Import models and list them.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group ``model`` to the command line."""
    app.add_typer(models)


def check_folder(folder: Path) -> Path:
    """Return the absolute path of a folder that can be loaded. Raises ValueError saying what is missing."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{folder} has no config.json: it is not a model folder") from None
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} is not a JSON object")
    if not any(path.stat().st_size for path in folder.glob(WEIGHTS)):
        raise ValueError(f"{folder} has no weights in {WEIGHTS}: save the model with safe_serialization=True")
    return folder.resolve()


async def import_model(folder: Path, connections: Connections, channel: str, *, name: str | None = None) -> str:
    """Store a model folder and announce it as imported; return its model id. Every call is a new model.

    The deployer gives it the channel's next major version and rolls it out. ``name`` (default: the folder's) is what
    people will know the base model by. Raises ValueError for a folder that is no model, and errors of store and broker
    as they are.
    """
    from flywheel.artifacts import upload
    from flywheel.ids import uuid7
    from flywheel.messages import ModelTrained
    from flywheel.storage.s3 import S3ObjectStore
    from flywheel.stream.cluster import Cluster
    from flywheel.stream.producer import Producer
    from flywheel.topics import MODELS

    folder = await asyncio.to_thread(check_folder, folder)
    base = name or folder.name
    model_id = f"imported-{uuid7()}"
    store = S3ObjectStore.from_settings(connections)
    lineage = {"origin": "imported", "base_model": base}
    artifact = await asyncio.to_thread(upload, store, folder, model_id, lineage)
    model = ModelTrained(model_id=model_id, channel=channel, artifact=artifact, origin="imported", base_model=base)
    producer = Producer(Cluster(connections), client_id="flywheel-cli")
    await producer.start()
    try:
        await producer.send_and_wait(MODELS.name, model_id, model.dump())
    finally:
        await producer.stop()
    return model_id


async def wait_until_deployed(connections: Connections, model_id: str, *, within: float) -> ModelUpdate:
    """Return the update that tells agents of the model. Raises TimeoutError after ``within`` seconds."""
    from flywheel.errors import PoisonError
    from flywheel.messages import ModelUpdate
    from flywheel.stream.cluster import Cluster
    from flywheel.stream.follow import follow
    from flywheel.topics import MODEL_UPDATES

    async with asyncio.timeout(within):
        updates = follow(Cluster(connections), MODEL_UPDATES.name, from_beginning=True, client_id="flywheel-cli")
        async with aclosing(updates) as records:
            async for record in records:
                try:
                    update = ModelUpdate.parse(record.value)
                except PoisonError:
                    continue  # a tombstone, or somebody else's message: not the one we wait for
                if update.artifact.model_id == model_id:
                    return update
    raise TimeoutError  # the topic never ends


@models.command("import")
def import_command(
    folder: Annotated[Path, typer.Argument(help="folder with config.json and weights, as transformers saves it")],
    channel: Annotated[str, typer.Option(help="model channel whose agents shall run it")] = "default",
    name: Annotated[str | None, typer.Option(help="what people will know it by; default: the folder's name")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait until the deployer gave it a version")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="longest wait, in seconds")] = 60.0,
) -> None:
    """Bring a model into the loop: store it, announce it, and have its channel's agents run it."""
    from flywheel.errors import FlywheelError
    from flywheel.settings import Connections

    async def run() -> None:
        connections = Connections.load()
        model_id = await import_model(folder, connections, channel, name=name)
        typer.echo(f"announced {model_id}")
        if wait:
            update = await wait_until_deployed(connections, model_id, within=timeout)
            typer.echo(f"channel {update.channel} runs version {update.version} (deployment {update.deployment_id})")

    try:
        asyncio.run(run())
    except TimeoutError:
        text = f"no version after {timeout:g} s: does the deployer run? Refused models are in flywheel.models.dead"
        raise _failed(text) from None
    except (ValueError, FlywheelError) as error:
        raise _failed(str(error)) from None


@models.command("list")
def list_command(
    gateway: Annotated[str | None, typer.Option(help="address of the gateway; default: from the settings")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON Lines")] = False,
) -> None:
    """List the registered models of every channel, the newest first."""
    from flywheel.settings import GatewaySettings

    settings = GatewaySettings.load()
    base = (gateway or f"http://{settings.host}:{settings.port}").rstrip("/")
    token = settings.token.get_secret_value() if settings.token else None
    cursor, found = "", 0
    while True:
        page = _get(f"{base}/api/v1/models?limit=500{cursor}", token)
        for model in page["items"]:
            found += 1
            typer.echo(json.dumps(model) if as_json else _line(model))
        if not page["next"]:
            break
        cursor = f"&cursor={page['next']}"
    if not found and not as_json:
        typer.echo("no models yet: flywheel model import DIR")


def _line(model: dict[str, Any]) -> str:
    imported = model["origin"] == "imported"
    came = f"imported {model['base_model'] or ''}" if imported else f"from {model['parent_version']}"
    mark = "* deployed" if model["deployed"] else ""
    line = f"{model['channel']:<16} {model['version']:<10} {model['registered_at'][:19]}  {came:<24} {mark}".rstrip()
    return "".join(character if character.isprintable() else "?" for character in line)  # a terminal obeys the rest


def _get(url: str, token: str | None) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=_GATEWAY_TIMEOUT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        hint = " (set FLYWHEEL_GATEWAY_TOKEN)" if error.code == 401 else ""
        raise _failed(f"the gateway answered {error.code}{hint}") from None
    except (OSError, ValueError) as error:
        raise _failed(f"no gateway at {url.partition('/api/')[0]}: {error}") from None


def _failed(message: str) -> typer.Exit:
    typer.echo(f"flywheel model: {message}", err=True)
    return typer.Exit(1)
