"""What a batch's manifest says. Pure."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt

from flywheel.ids import Identifier

#: The newest format: rows may carry entries of the reward ledger. A batch in which none does is of the first format,
#: byte for byte, so that older readers take it; they refuse the others instead of learning from totals that lack
#: something.
SCHEMA_VERSION = 2
WITHOUT_ENTRIES = 1

#: Part of the format: another level gives other bytes. 197 MB/s and 3.3 to 1 on events of 1 KB.
ZSTD_LEVEL = 3

#: Longest row, in bytes before compression and with its line end. Writers leave out what is longer, readers refuse it:
#: a part is small on disk whatever it unfolds to, and nobody's memory may depend on that.
LONGEST_ROW = 256 * 1024 * 1024

#: Policy version of calls that name none.
UNKNOWN_VERSION = "unknown"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Member(_Frozen):
    """One trajectory of a batch, as it was when it was archived."""

    trajectory_id: Identifier
    revision: int
    group_id: Identifier


class BatchFile(_Frozen):
    """One data file."""

    key: str
    bytes: NonNegativeInt
    sha256: str
    trajectories: NonNegativeInt


class Counts(_Frozen):
    """What a batch holds."""

    trajectories: NonNegativeInt = 0
    groups: NonNegativeInt = 0
    events: NonNegativeInt = 0
    steps: NonNegativeInt = 0
    llm_calls: NonNegativeInt = 0
    untrainable_calls: NonNegativeInt = Field(
        default=0, description="calls without aligned token ids and log-probabilities"
    )
    missing: NonNegativeInt = Field(default=0, description="holes in seq: events that never arrived")


class Manifest(_Frozen):
    """What a batch is made of, and why it was made."""

    schema_version: int = WITHOUT_ENTRIES
    batch_id: Identifier
    channel: Identifier
    created_at: AwareDatetime = Field(description="when its members were decided")
    rule: str = Field(description="which readiness rule fired, in words with its figures")
    counts: Counts
    files: list[BatchFile]
    members: list[Member] = Field(description="in the order of the rows")
    policy_versions: dict[str, int] = Field(description="LLM calls by the model version that sampled them")
