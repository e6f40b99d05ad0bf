"""A recipe: one typed, frozen description of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataRecipe(_Strict):
    """Which samples; where a prepared folder is given, only `mixed_with` is read."""

    dataset: str = "movielens-100k"
    """A data set by name, or the path of a prepared folder."""
    source: Path | None = None
    """Folder or zip of a named data set's original files; what can be fetched unless given."""
    split: Literal["paper", "users", "time"] = "users"
    history: int = Field(10, ge=1)
    """The longest history a sample shows, in events."""
    min_history: int | None = Field(None, ge=0)
    """The shortest history that makes a sample; `history` unless given."""
    like_above: float | None = None
    """A rating above this is a like; 3, and 5 for Book-Crossing, unless given."""
    implicit: bool | None = None
    """Whether interactions without a rating are kept, as dislikes; only for the split `paper`
    unless given."""
    seed: int = 0
    """Seed of the split."""
    mixed_with: tuple[str, ...] = ()
    """Prepared folders of other domains: shots are drawn from all in equal numbers."""

    @model_validator(mode="after")
    def _a_range_of_histories(self) -> Self:
        if self.min_history is not None and self.min_history > self.history:
            raise ValueError(
                f"min_history ({self.min_history}) must not be above history ({self.history})"
            )
        return self


class ShotsRecipe(_Strict):
    """Which training samples are tuned on."""

    count: int = Field(64, ge=1)
    stratify: Literal["none", "label", "user"] = "none"
    orders: int = Field(1, ge=1)
    """In how many orders of its history and target each shot is tuned on; 1 is as it is."""
    most_rows: int | None = Field(None, ge=1)
    """Where all orders of all shots would be more rows than this, as many orders as fit (at least
    one), so that many shots take no longer than few."""
    validation: Literal["none", "shots", "paper"] = "none"
    """Labels that stop tuning early: none, a share of the shots, or the whole validation part."""
    validation_share: float = Field(0.25, gt=0, lt=1)
    """Share of the shots held out where `validation` is `shots`."""


class BackboneRecipe(_Strict):
    """Which language model."""

    source: str = "smollm2-135m"
    """An embedded asset by name, a Hugging Face id, a local folder or a GGUF file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    max_tokens: int = Field(1024, ge=16)
    """Longer prompts lose their oldest history."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Bits of the frozen weights: as they are, 8 (LLM.int8) or 4 (QLoRA); needs bitsandbytes."""
    shard: Literal["none", "fsdp"] = "none"
    """Where several processes tune: whether each holds all frozen weights, or a part (FSDP2)."""
    adapter: str | None = None
    """An adapter folder, of this project or of plain PEFT, that the first stage goes on from."""

    @model_validator(mode="after")
    def _whole_or_in_parts(self) -> Self:
        if self.shard != "none" and self.quantize != "none":
            raise ValueError(
                f"quantized weights are not sharded: give shard or quantize, not both (a process "
                f"holds all of the weights in {self.quantize})"
            )
        return self


class LoraRecipe(_Strict):
    """The adapter."""

    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "v_proj")


class _Stage(_Strict):
    """What every tuning stage has; see `tallrec.llm.tuning.TuningOptions`."""

    epochs: int = Field(4, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: float = Field(0.1, ge=0)
    """Share of the steps (below 1) or number of steps in which the learning rate rises."""
    batch_size: int = Field(8, ge=1)
    """Rows in one optimizer step, of all processes together."""
    micro_batch: int = Field(8, ge=1)
    """Rows in one forward pass; bounds memory."""
    weight_decay: float = Field(0.0, ge=0)
    gradient_checkpointing: bool = False
    """Whether activations are computed twice to save memory."""
    int8: bool = False
    """Whether products with frozen weights are of eight bits, on CPUs that can."""
    patience: int = Field(3, ge=1)
    """Validations without a better AUC before tuning stops."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch "
                f"({self.micro_batch})"
            )
        return self


class InstructionsStage(_Stage):
    """Tuning on general instructions ("Alpaca tuning"); once for all seeds of the recipe."""

    data: Literal["instructions"] = "instructions"
    source: str
    """A JSON, JSON lines or Parquet file, a folder of these, or a Hugging Face data set id."""
    count: int | None = Field(None, ge=1)
    """How many records to draw; all unless given."""
    seed: int = 0
    """Draws and orders the records."""
    max_tokens: int = Field(512, ge=16)
    """Longer responses are cut off."""
    loss: Literal["response", "all-tokens"] = "response"


class ShotsStage(_Stage):
    """Tuning on the shots ("rec-tuning"); anew for each seed."""

    data: Literal["shots"] = "shots"
    loss: Literal["answers", "response", "all-tokens"] = "answers"
    strength: float = Field(1.0, gt=0, le=1)
    """What the adapter's update is multiplied by when it is saved (WiSE-FT)."""


STAGES: dict[str, type[BaseModel]] = {"instructions": InstructionsStage, "shots": ShotsStage}
Baseline = Literal["gru4rec", "caser", "sasrec", "dros", "gru-bert", "dros-bert"]
Reference = Literal[
    "item-mean", "like-rate-item-mean", "item-knn", "matrix-factorization", "gradient-boosting"
]
Logger = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Stage = Annotated[InstructionsStage | ShotsStage, Field(discriminator="data")]


class EvaluationRecipe(_Strict):
    """How scores are made and measured."""

    ordering: Literal["log-odds", "released"] = "log-odds"
    block: int = Field(1, ge=1)
    """How many events the beginning of a history moves at once; histories are longer by up to one
    less than this, and a user's successive rows share most of their prompts."""
    baselines: tuple[Baseline, ...] = ()
    """Recommenders of the paper to put beside the model, fitted on the shots of each seed."""
    baselines_on: Literal["shots", "train"] = "shots"
    """What they are fitted on: the same shots as the model, or the whole training part."""
    encoder: str = "minilm"
    """Of titles, for the baselines with BERT: an embedded asset, a Hugging Face id or a folder."""
    references: tuple[Reference, ...] = ()
    """What one would pick who has all the data, fitted on all users outside validation and test."""
    zero_shot: bool = False
    """Whether the backbone without its adapter is a row of the table."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples of the users."""
    batch_tokens: int = Field(4096, ge=16)
    """Tokens in one forward pass."""
    int8: bool = False
    """Whether linear layers multiply in eight bits, on CPUs that can (`tallrec.llm.int8`)."""


class GaussianProcessRecipe(_Strict):
    """A recommender on the same shots, which takes from the backbone what it knows of titles."""

    history: int = Field(200, ge=1)
    """How many of a user's latest events it reads."""
    components: int = Field(64, ge=1)
    """How many numbers a title's vector has."""
    full_data: bool = False
    """Whether one fitted on all users outside validation and test is a row of the table too."""


class Recipe(_Strict):
    """Everything that decides what a run computes."""

    name: str = "demo"
    template: Literal["timeline", "paper", "paper-clean"] = "timeline"
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Each seed draws its own shots and tunes its own adapter."""
    loggers: tuple[Logger, ...] = ()
    """Where each step is logged besides `metrics.jsonl`; each needs the package of its name."""
    data: DataRecipe = DataRecipe()
    shots: ShotsRecipe = ShotsRecipe()
    backbone: BackboneRecipe = BackboneRecipe()
    lora: LoraRecipe = LoraRecipe()
    stages: tuple[Stage, ...] = (ShotsStage(),)
    """Tuned one after the other, each going on from the adapter of the one before; without any,
    the backbone is measured as it is, with `backbone.adapter` if there is one."""
    gaussian_process: GaussianProcessRecipe | None = None
    """Fitted beside the model, evaluated with it, and what recommends; only the model without."""
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @model_validator(mode="after")
    def _shots_come_last(self) -> Self:
        if any(isinstance(stage, ShotsStage) for stage in self.stages[:-1]):
            raise ValueError(
                "a stage on shots must be the last and only one: stages on instructions come "
                "before it"
            )
        return self

    @model_validator(mode="after")
    def _shots_of_every_domain(self) -> Self:
        if self.shots.count <= len(self.data.mixed_with):
            raise ValueError(
                f"shots.count must be at least one for each of the "
                f"{len(self.data.mixed_with) + 1} mixed folders; got {self.shots.count}"
            )
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from each other; got {list(self.seeds)}")
        return self

    @property
    def instruction_stages(self) -> tuple[InstructionsStage, ...]:
        """The stages that all seeds share."""
        return tuple(stage for stage in self.stages if isinstance(stage, InstructionsStage))

    @property
    def shots_stage(self) -> ShotsStage | None:
        """The stage of each seed, if there is one."""
        last = self.stages[-1] if self.stages else None
        return last if isinstance(last, ShotsStage) else None

    @property
    def in_int8(self) -> bool:
        """Whether all products with weights are of eight bits, in tuning and scoring.

        Rows that tuning stops on are scored by a model that is being tuned, whose are not.
        """
        stages = all(stage.int8 for stage in self.stages)
        plain = self.backbone.quantize == self.backbone.shard == self.shots.validation == "none"
        return stages and self.evaluation.int8 and plain

    def to_toml(self) -> str:
        """The recipe as TOML, every value written out (except what is None)."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
