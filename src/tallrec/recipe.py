"""A recipe: one typed, frozen description of a run. TOML in, TOML out."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataRecipe(_Strict):
    """Which samples; ignored where a prepared folder is given."""

    dataset: str = "movielens-100k"
    """A data set by name, or the path of a prepared folder."""
    split: Literal["paper", "users", "time"] = "users"
    history: int = Field(10, ge=1)
    """The longest history a sample shows, in events."""
    min_history: int | None = Field(None, ge=0)
    """The shortest history that makes a sample; `history` unless given."""
    block: int = Field(1, ge=1)
    """How many events the beginning of a history moves at once; histories are longer by up to one
    less than this."""
    like_above: float = 3.0
    """A rating above this is a like."""
    seed: int = 0
    """Seed of the split."""

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
    adapter: str | None = None
    """An adapter folder, of this project or of plain PEFT, that the first stage goes on from."""


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
    micro_batch: int = Field(8, ge=1)
    """Rows in one forward pass; bounds memory."""
    weight_decay: float = Field(0.0, ge=0)
    gradient_checkpointing: bool = False
    """Whether activations are computed twice to save memory."""
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
Logger = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Stage = Annotated[InstructionsStage | ShotsStage, Field(discriminator="data")]


class EvaluationRecipe(_Strict):
    """How scores are made and measured."""

    ordering: Literal["log-odds", "released"] = "log-odds"
    backbone_share: float = Field(0.0, ge=0, lt=1)
    """Share of a score that the backbone without its adapter gives; doubles the time of scoring."""
    history_order: Literal["time", "lasting"] = "time"
    """Of a scored row's history: oldest first, or what stays in it longest first, so that a user's
    successive rows share more."""
    zero_shot: bool = False
    """Whether the backbone without its adapter is a row of the table."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples of the users."""
    batch_tokens: int = Field(4096, ge=16)
    """Tokens in one forward pass."""


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

    def to_toml(self) -> str:
        """The recipe as TOML, every value written out (except what is None)."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(files("tallrec") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def about(path: Path) -> str:
    """The first sentence of the comment at the head of a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.removeprefix("#").strip() for line in head)
    return re.split(r"\.\s", text.removeprefix(f"{path.stem}: "))[0]


def load_recipe(source: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: The name of a shipped recipe or the path of a TOML file.
        overrides: `path=value` texts, such as `stages.0.learning_rate=3e-4`; the value is TOML, or
            else taken as text.

    Raises:
        ValueError: If there is no such recipe, or a key or value is not allowed; each is named
            with its path and what would be right.
    """
    shipped = shipped_recipes()
    try:
        return read_recipe(shipped.get(source, Path(source)), overrides, name=source)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"there is no recipe {source!r}: give a TOML file or one of {', '.join(shipped)}"
        ) from None


def read_recipe(path: Path, overrides: tuple[str, ...] = (), *, name: str | None = None) -> Recipe:
    """Reads a recipe from a file, called `name` in messages; see `load_recipe`."""
    name = name or str(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the recipe {name} is not TOML: {error}") from None
    for override in overrides:
        _set(tree, override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise ValueError(f"the recipe {name} is not right: {problems}") from None


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"--set takes path=value, such as stages.0.epochs=4; got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    place: Any = tree
    for name in tables:
        if isinstance(place, list):
            place = place[_index(place, name, override)]
        else:
            place = place.setdefault(name, {})
        if not isinstance(place, dict | list):
            raise ValueError(f"--set {override}: {name} is a value, not a table")
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _index(items: list[Any], text: str, override: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise ValueError(
            f"--set {override}: {text!r} is none of the numbers 0 to {len(items) - 1} of that list"
        )
    return int(text)


def _explain(problem: Any) -> str:
    """One validation problem as path, fault and allowed keys."""
    path = list(problem["loc"])
    model: type[BaseModel] = Recipe
    if path[:1] == ["stages"] and len(path) > 2:
        model = STAGES[path.pop(2)]  # pydantic tells which kind of stage it took it for
        inner = path[2:]
    else:
        inner = path
    where = ".".join(map(str, path)) or "recipe"
    if problem["type"] == "union_tag_not_found":
        return f"{where}: data is missing; give data = {' or '.join(map(repr, STAGES))}"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
    for part in inner[:-1]:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return f"{where}: there is no such key; there are {', '.join(model.model_fields)}"
