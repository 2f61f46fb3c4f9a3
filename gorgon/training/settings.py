"""What ``gorgon train`` is asked for; the defaults are those of the shipped heads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gorgon.training.heads import HeadsConfig, Variant
from gorgon.training.quantisation import MatrixType

Source = Literal["auto", "llama.cpp", "torch"]


class TrainingSettings(BaseModel):
    """Frozen and validated; sizes in tokens unless said otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: Path
    out: Path
    variant: Variant = "conditioned"
    num_heads: int = Field(default=4, ge=1, le=16)
    num_hidden: int = Field(default=1024, ge=32, multiple_of=32)
    window: int = Field(default=2, ge=0, le=8)
    num_outputs: int = Field(default=8192, ge=32, description="frequent tokens heads can guess")
    max_tokens: int = Field(default=256, ge=8, description="of an answer")
    max_prompt_tokens: int = Field(default=512, ge=8)
    num_answers: int = Field(default=2, ge=1, description="to each prompt, one of them greedy")
    num_invented: int = Field(default=0, ge=0, description="prompts the model makes up itself")
    num_held_out: int = Field(default=64, ge=2, description="prompts to measure with")
    epochs: float = Field(default=2.0, gt=0)
    batch_size: int = Field(default=512, ge=16, description="positions a step")
    learning_rate: float = Field(default=1.5e-3, gt=0, le=0.1)
    patience: int = Field(default=4, ge=1, description="looks at the held-out loss without gain")
    matrix_type: MatrixType = Field(default="Q4_0", description="what training prepares for")
    num_slots: int = Field(default=0, ge=0, description="texts at once; 0 chooses")
    source: Source = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(default=0, ge=0)
    work: Path | None = None

    @model_validator(mode="after")
    def _check_variant(self) -> TrainingSettings:
        given = self.model_fields_set & {"num_hidden", "window"}
        if given and self.variant != "conditioned":
            raise ValueError(f"{min(given)} is of conditioned heads only")
        return self

    def heads(self, num_vocab: int) -> HeadsConfig:
        """The heads to make for a model of ``num_vocab`` tokens."""
        return HeadsConfig(
            variant=self.variant,
            num_heads=self.num_heads,
            num_hidden=self.num_hidden,
            window=self.window,
            num_outputs=min(self.num_outputs, num_vocab),
        )

    @property
    def work_folder(self) -> Path:
        """Where answers, states and checkpoints lie until the heads are done."""
        return self.work or self.out.with_name(self.out.name + ".work")
