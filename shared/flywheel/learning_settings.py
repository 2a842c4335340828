"""The part of the trainer's settings that says what the loss is, which weights it fits, and how precisely."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LearningSettings(BaseModel):
    """What :class:`flywheel.settings.TrainerSettings` has of this; never loaded on its own."""

    model_config = ConfigDict(allow_inf_nan=False)

    is_mode: Literal["decoupled", "behavior"] = Field(
        default="decoupled", description="importance sampling on recorded log-probabilities: decoupled or behavior"
    )
    is_cap: float = Field(default=2.0, gt=0, description="truncation of the importance weight")
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = Field(
        default="dapo", description="TRL's loss_type"
    )
    importance_level: Literal["token", "sequence"] = Field(
        default="token",
        description="ratio of each token, or of the whole sequence (GSPO: sequence with loss_type grpo)",
    )
    epsilon: float = Field(default=0.2, gt=0, description="lower clip range")
    epsilon_high: float = Field(default=0.28, gt=0, description="upper clip range")
    supervised_weight: float = Field(
        default=0.1, gt=0, description="text_only=supervised: weight of a supervised token against one with a ratio"
    )
    singletons: Literal["baseline", "skip"] = Field(
        default="baseline",
        description="a group of one; baseline: compared with the running mean of its scenario's rewards; skip: its "
        "advantage is 0",
    )
    baseline_decay: float = Field(
        default=0.9, gt=0, le=1, description="what a job leaves of the weight of a scenario's earlier rewards; 1: all"
    )
    baseline_min_weight: float = Field(
        default=16.0, ge=2, description="rewards, by effective number, from which on a scenario's running mean is used"
    )
    tuning: Literal["full", "lora"] = Field(
        default="full", description="which weights are trained; full: all; lora: low-rank adapters, merged at the end"
    )
    lora_rank: int = Field(default=16, ge=1, description="lora: rank of the adapters")
    lora_alpha: float = Field(default=32.0, gt=0, description="lora: the adapters' output is scaled by alpha/rank")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="lora: dropout before the adapters")
    lora_targets: str = Field(
        default="all-linear",
        min_length=1,
        description="lora: names of the modules that get an adapter, separated by commas; all-linear: every linear "
        "layer but the language model head, which cannot have one",
    )
    lora_keep: bool = Field(default=True, description="lora: the model's artifact has the adapter too, in adapter/")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the arithmetic; weights that are trained and their optimizer are float32 in any case. auto: "
        "bfloat16 on a GPU that has it, float32 elsewhere",
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        default="auto", description="activations are computed twice instead of kept; auto: on a GPU"
    )
    save_dtype: Literal["parent", "float32", "bfloat16"] = Field(
        default="parent", description="of the weights in the model's artifact; parent: what the parent's files have"
    )
    micro_tokens: int = Field(
        default=16_384,
        ge=1,
        description="most tokens, padding included, in one forward pass of one process; a longer row goes alone",
    )
    processes: int = Field(
        default=1, ge=1, le=64, description="processes that train together, one GPU each; what is learned is the same"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        """Refuse what would train something else than it says, before a job finds out."""
        name = "FLYWHEEL_TRAINER_{}".format
        if self.importance_level == "sequence" and self.loss_type not in ("grpo", "sapo", "luspo"):
            raise ValueError(
                f"{name('IMPORTANCE_LEVEL')}=sequence is for {name('LOSS_TYPE')} grpo, sapo or luspo, not for "
                f"{self.loss_type}, which sums over tokens or weighs sequences itself"
            )
        if self.loss_type == "luspo" and self.importance_level != "sequence":
            raise ValueError(f"{name('LOSS_TYPE')}=luspo needs {name('IMPORTANCE_LEVEL')}=sequence")
        if self.loss_type == "cispo" and self.epsilon_high <= 1:
            raise ValueError(
                f"{name('LOSS_TYPE')}=cispo caps the ratio at {name('EPSILON_HIGH')}, which must be above 1, as 5 is"
            )
        if self.is_mode == "decoupled" and self.is_cap < 1:
            raise ValueError(f"{name('IS_CAP')} below 1 would weaken the current policy's play too: 1 or more")
        if "lm_head" in (target.strip() for target in self.lora_targets.split(",")):
            raise ValueError(
                f"{name('LORA_TARGETS')}: lm_head cannot have an adapter, its weights are read without calling it"
            )
        return self
