"""Where each object lives in the store. One function owns each name, so that writer and reader cannot drift apart."""

from __future__ import annotations

from datetime import date


def batch_prefix(batch_id: str) -> str:
    """Return the prefix that holds everything of one training batch."""
    return f"batches/{batch_id}/"


def batch_data(batch_id: str, part: int) -> str:
    """Return the name of one data file of a batch: JSON Lines, zstd; one trajectory a line."""
    return f"{batch_prefix(batch_id)}trajectories-{part:05d}.jsonl.zst"


def batch_manifest(batch_id: str) -> str:
    """Return the name of a batch's manifest. It is written last: a batch without one does not exist."""
    return f"{batch_prefix(batch_id)}manifest.json"


def model_prefix(model_id: str) -> str:
    """Return the prefix that holds one model artifact."""
    return f"models/{model_id}/"


def model_file(model_id: str, path: str) -> str:
    """Return the name of one file of a model artifact; ``path`` is relative, with forward slashes."""
    return f"{model_prefix(model_id)}files/{path}"


def model_manifest(model_id: str) -> str:
    """Return the name of a model's manifest (files, digests, lineage). It is written last."""
    return f"{model_prefix(model_id)}manifest.json"


def day_prefix(day: date) -> str:
    """Return the prefix that holds the archived events of one UTC day."""
    return f"events/{day:%Y-%m-%d}/"


def day_data(day: date, part: int) -> str:
    """Return the name of one data file of an archived day: JSON Lines, zstd; one event a line."""
    return f"{day_prefix(day)}events-{part:05d}.jsonl.zst"


def day_manifest(day: date) -> str:
    """Return the name of an archived day's manifest. It is written last: a day without one is not archived."""
    return f"{day_prefix(day)}manifest.json"
