"""What the SDK's spans are called and say, by OpenTelemetry's conventions for generative AI, purely.

https://github.com/open-telemetry/semantic-conventions-genai: a trajectory is ``invoke_agent``, a call of a language
model ``chat``, an access to a provider ``execute_tool``. Prompts, answers and data are not in them: the events have
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flywheel.events import LLMCall, ProviderAccess, Step
from flywheel.messages import ModelUpdate

Fields = Mapping[str, Any]
Attributes = dict[str, str | bool | int | float | Sequence[str]]

_NAMES: Mapping[type[Any], str] = {Step: "step", LLMCall: "chat", ProviderAccess: "execute_tool"}


def name(kind: type[Any], fields: Fields) -> str:
    """Return what the span of a turn, a call or an access is called."""
    subject = fields.get("model" if kind is LLMCall else "provider" if kind is ProviderAccess else "")
    return f"{_NAMES[kind]} {subject}" if subject else _NAMES[kind]


def begun(agent_id: str, trajectory_id: str, fields: Fields) -> Attributes:
    """Return what is known of a trajectory when it begins."""
    return _present(
        {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": agent_id,
            "flywheel.trajectory.id": trajectory_id,
            "flywheel.scenario.id": fields.get("scenario_id"),
            "flywheel.group.id": fields.get("group_id"),
            "flywheel.channel": fields.get("channel"),
            "flywheel.model.version": fields.get("model_version"),
            "flywheel.split": fields.get("split"),
        }
    )


def loaded(agent_id: str, update: ModelUpdate) -> Attributes:
    """Return what is known of a version that an agent shall load."""
    return {
        "gen_ai.agent.id": agent_id,
        "flywheel.channel": update.channel,
        "flywheel.model.id": update.artifact.model_id,
        "flywheel.model.version": update.version,
        "flywheel.deployment.id": update.deployment_id,
    }


def ended(kind: type[Any] | None, fields: Fields) -> Attributes:
    """Return what is known when it is over; ``kind`` None: of a trajectory, or a version that was loaded."""
    describe = _KINDS.get(kind, _trajectory) if kind is not None else _trajectory
    return _present({"flywheel.step": fields.get("step"), **describe(fields)})


def wrong(fields: Fields) -> bool:
    """Return whether the fields of what is over say that it failed."""
    return bool(fields.get("error")) or fields.get("status") in ("error", "timeout")


def _call(fields: Fields) -> dict[str, Any]:
    usage, sampling, reason = fields.get("usage"), fields.get("sampling"), fields.get("finish_reason")
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "_OTHER",  # nobody told us
        "gen_ai.request.model": fields.get("model"),
        "gen_ai.request.temperature": _get(sampling, "temperature"),
        "gen_ai.request.top_p": _get(sampling, "top_p"),
        "gen_ai.request.max_tokens": _get(sampling, "max_tokens"),
        "gen_ai.request.seed": _get(sampling, "seed"),
        "gen_ai.response.id": fields.get("response_id"),
        "gen_ai.response.finish_reasons": [str(reason)] if reason else None,
        "gen_ai.usage.input_tokens": _tokens(_get(usage, "prompt_tokens"), fields.get("prompt_token_ids")),
        "gen_ai.usage.output_tokens": _tokens(_get(usage, "completion_tokens"), fields.get("completion_token_ids")),
        "flywheel.model.version": fields.get("model_version"),
    }


def _access(fields: Fields) -> dict[str, Any]:
    return {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": fields.get("provider")}


def _step(fields: Fields) -> dict[str, Any]:
    action = fields.get("action")
    return {
        "flywheel.action": _get(action, "name"),
        "flywheel.action.success": _get(action, "success"),
        "flywheel.reward": fields.get("reward"),
        "flywheel.done": fields.get("done"),
    }


def _trajectory(fields: Fields) -> dict[str, Any]:
    return {"flywheel.status": fields.get("status"), "flywheel.load_seconds": fields.get("load_seconds")}


_KINDS: Mapping[type[Any], Callable[[Fields], dict[str, Any]]] = {LLMCall: _call, ProviderAccess: _access, Step: _step}


def _present(attributes: Mapping[str, Any]) -> Attributes:
    """Leave out what is not known, and what no attribute can be."""
    return {key: value for key, value in attributes.items() if isinstance(value, str | bool | int | float | list)}


def _get(holder: Any, key: str) -> Any:
    return holder.get(key) if isinstance(holder, Mapping) else getattr(holder, key, None)


def _tokens(reported: Any, ids: Any) -> int | None:
    if reported is None and ids is not None:
        return len(ids)
    return reported
