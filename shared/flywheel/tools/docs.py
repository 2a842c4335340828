"""Write the reference pages from the code, or with ``--check`` tell which of them no longer agree with it.

``python -m flywheel.tools.docs [--check] [FOLDER]``; FOLDER is ``docs`` unless given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from flywheel import messages, metrics, outcomes, topics
from flywheel.events import json_schema
from flywheel.sections import SECTIONS
from flywheel.settings import Section
from flywheel.weighted import WeightedHistogram

_NOTE = "Written by `python -m flywheel.tools.docs` from the code; `make check` fails when they disagree."

#: What travels on each topic. Dead-letter topics carry the bytes that arrived, whatever they were.
_MESSAGES: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        topics.OUTCOMES.name: outcomes.Outcome,
        topics.TRAJECTORIES.name: messages.TrajectoryClosed,
        topics.BATCHES.name: messages.BatchReady,
        topics.MODELS.name: messages.ModelTrained,
        topics.MODEL_UPDATES.name: messages.ModelUpdate,
        topics.ACKS.name: messages.Ack,
        topics.COMMANDS.name: messages.Command,
        topics.REPLAYS.name: messages.Replayed,
    }
)


#: What people call the types.
_WORDS = {
    "str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path",
    "SecretStr": "secret", "NoneType": "none", "datetime": "time with offset",
}  # fmt: skip


def pages() -> dict[str, str]:
    """Return every generated page: file name and text."""
    return {
        "events.schema.json": json.dumps(json_schema(), indent=2) + "\n",
        "outcomes.schema.json": json.dumps(outcomes.json_schema(), indent=2) + "\n",
        "settings.md": settings_page(SECTIONS),
        "topics.md": topics_page(),
        "metrics.md": metrics_page(),
    }


def settings_page(sections: Iterable[type[Section]]) -> str:
    """Return the page of all settings."""
    module = sys.modules[Section.__module__].__doc__ or ""
    lines = ["# Settings", "", _NOTE, "", *module.strip().splitlines()[2:], ""]
    lines += [
        "`FLYWHEEL_ENV_FILE` names that file; without it, it is `local/flywheel.env` under `FLYWHEEL_VAR`.",
        "A variable that is set but empty counts as not set.",
    ]
    for section in sections:
        prefix = section.model_config.get("env_prefix", "")
        title = section.__name__.removesuffix("Settings")
        lines += ["", f"## {title}", "", *(section.__doc__ or "").strip().splitlines(), ""]
        lines += _table(
            ("variable", "type", "default", "meaning"),
            [
                (f"`{prefix}{name.upper()}`", _type(field), _default(field), field.description or "")
                for name, field in section.model_fields.items()
            ],
        )
    return "\n".join(lines) + "\n"


def topics_page() -> str:
    """Return the page of all topics and the messages on them."""
    lines = ["# Topics", "", _NOTE, ""]
    lines += _table(
        ("topic", "key", "value", "partitions", "kept"),
        [(f"`{t.name}`", t.key, t.holds, str(t.partitions), _kept(t)) for t in topics.ALL_TOPICS],
    )
    lines += [
        "",
        f"The broker takes messages of up to {topics.MAX_MESSAGE_BYTES // 2**20} MiB,"
        f" events may have {topics.MAX_EVENT_BYTES // 2**20} MiB,"
        f" outcomes {topics.MAX_OUTCOME_BYTES // 2**10} KiB.",
        "Events follow [events.schema.json](events.schema.json), outcomes",
        "[outcomes.schema.json](outcomes.schema.json); what both mean is in [events.md](events.md).",
    ]
    for name, model in _MESSAGES.items():
        lines += ["", f"## `{name}`: {model.__name__}", "", *(model.__doc__ or "").strip().splitlines(), ""]
        lines += _table(
            ("field", "type", "default", "meaning"),
            [
                (f"`{field_name}`", _type(field), _default(field), field.description or "")
                for field_name, field in model.model_fields.items()
            ],
        )
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Return the page of all metrics, in the order of the catalogue."""
    rows: list[tuple[str, ...]] = []
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase | WeightedHistogram):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            # The client has no public way to ask for the names of labels.
            rows.append((f"`{name}`", family.type, ", ".join(getattr(metric, "_labelnames", ())), family.documentation))
    lines = ["# Metrics", "", _NOTE, "", "Names end in their unit. Every service shows those it uses.", ""]
    return "\n".join([*lines, *_table(("metric", "type", "labels", "meaning"), rows)]) + "\n"


def _kept(topic: topics.Topic) -> str:
    return "the last of each key" if topic.cleanup == "compact" else f"{topic.retention_days} days"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def _type(field: FieldInfo) -> str:
    """Return the type in words: what a person writes into the environment or finds in JSON."""
    return _type_name(field.annotation)


def _type_name(annotation: Any) -> str:
    if args := get_args(annotation):
        if isinstance(args[0], str):
            return " or ".join(f"`{value}`" for value in args)
        if getattr(annotation, "__origin__", None) in (dict, list, tuple):
            return annotation.__origin__.__name__
        if hasattr(annotation, "__metadata__"):
            return _type_name(args[0])
        return " or ".join(_type_name(arg) for arg in args)
    name = str(getattr(annotation, "__name__", annotation))
    return _WORDS.get(name, name)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        made = field.get_default(call_default_factory=True)
        return "now" if made else "empty"
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    if value is None or value == "":
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main(arguments: list[str]) -> int:
    """Write the pages, or check them; return the exit status."""
    check = "--check" in arguments
    folder = Path(next((a for a in arguments if not a.startswith("-")), "docs"))
    stale = [name for name, text in pages().items() if _read(folder / name) != text]
    if check:
        for name in stale:
            sys.stderr.write(f"{folder / name} does not agree with the code: run `make docs`\n")
        return 1 if stale else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (folder / name).write_text(pages()[name], encoding="utf-8")
        sys.stdout.write(f"wrote {folder / name}\n")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
