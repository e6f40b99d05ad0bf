"""LoRA adapters in PEFT's own format, proven on every load."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

from tallrec.llm.backbone import Backbone

if TYPE_CHECKING:
    from torch import Tensor

_CARD = "tallrec.json"
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterCard:
    """What must be known to use an adapter, written beside its weights as `tallrec.json`.

    Attributes:
        backbone: Name of the base model it was tuned on.
        fingerprint: Identifies that model's weights.
        template: Name of the template.
        domain: The noun for an item.
        yes: The answer text of a like, and `yes_id` its token.
        no: The answer text of a dislike, and `no_id` its token.
        yes_id: Token id of Yes.
        no_id: Token id of No.
        max_tokens: The longest row it was tuned on.
    """

    backbone: str
    fingerprint: str
    template: str
    domain: str
    yes: str
    no: str
    yes_id: int
    no_id: int
    max_tokens: int


def attach_lora(
    backbone: Backbone,
    *,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.05,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    seed: int = 0,
) -> PeftModel:
    """Wraps the backbone's model with a fresh LoRA adapter (Hu et al., 2021).

    The defaults are the paper's (TALLRec, section 4.1). The adapter's weights are float32.

    Args:
        backbone: The base model; its weights stay frozen and unchanged.
        rank: Rank of the update.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout on the adapter's input while tuning.
        targets: Names of the linear modules to adapt, or `all-linear`.
        seed: Seeds the adapter's random half.

    Raises:
        ValueError: If the model has no linear modules of a target's name, or carries an adapter.
    """
    _require_bare(backbone)
    _check_targets(backbone, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    return _wrap(backbone, config)


def _check_targets(backbone: Backbone, targets: tuple[str, ...]) -> None:
    if targets == ("all-linear",):
        return
    head = backbone.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = [
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]
    unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
    if unknown or not targets:
        names = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ValueError(
            f"{backbone.name} has no linear module {' or '.join(unknown)} for LoRA (its output "
            f"head does not count); choose from {', '.join(names)}, or give all-linear alone"
        )


def _require_bare(backbone: Backbone) -> None:
    if getattr(backbone.model, "peft_config", None):
        raise ValueError(
            f"{backbone.name} already carries an adapter: unload() that one, or load the backbone "
            f"again"
        )


def _wrap(backbone: Backbone, config: PeftConfig) -> PeftModel:
    with warnings.catch_warnings():  # PEFT uses names that transformers has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(backbone.model, config)
    assert isinstance(model, PeftModel)
    return model


def save_adapter(model: PeftModel, folder: Path, card: AdapterCard) -> None:
    """Writes a standard PEFT adapter folder with its card; it appears whole or not at all.

    An adapter that is there already is replaced.

    Raises:
        ValueError: If the adapter's weights are zero, missing or not finite.
    """
    check_weights(get_peft_model_state_dict(model, save_embedding_layers=False), str(folder))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), save_embedding_layers=False)
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    _sort_targets(partial / _CONFIG)
    (partial / _CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _sort_targets(path: Path) -> None:
    """PEFT writes a set, in the order of this process; equal adapters shall be equal files."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_card(folder: Path) -> AdapterCard:
    """Reads the card of an adapter folder.

    Raises:
        ValueError: If there is no readable card.
    """
    path = folder / _CARD
    try:
        return AdapterCard(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{folder} is not an adapter of tallrec: it has no {_CARD}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def load_adapter(backbone: Backbone, folder: Path) -> PeftModel:
    """Loads an adapter of tallrec on the backbone it was tuned on.

    Args:
        backbone: The base model, without another adapter.
        folder: An adapter folder with its card.

    Raises:
        ValueError: If the adapter belongs to other base weights, or if its tensors are missing,
            superfluous, zero or not finite.
    """
    _check_card(backbone, folder)
    return _load(backbone, folder, frozen=True).eval()


def continue_adapter(backbone: Backbone, folder: Path, *, seed: int = 0) -> PeftModel:
    """Loads an adapter to tune it further: one of tallrec, or any LoRA adapter of plain PEFT.

    Rank, scale, dropout and target modules are those of the adapter.

    Args:
        backbone: The base model, without another adapter.
        folder: An adapter folder; its card is checked if it has one.
        seed: Seeds dropout, as in `attach_lora`.

    Raises:
        ValueError: As `load_adapter`.
    """
    if (folder / _CARD).exists():
        _check_card(backbone, folder)
    torch.manual_seed(seed)
    return _load(backbone, folder, frozen=False)


def _check_card(backbone: Backbone, folder: Path) -> None:
    card = read_card(folder)
    if card.fingerprint != backbone.fingerprint:
        raise ValueError(
            f"the adapter in {folder} was tuned on {card.backbone} ({card.fingerprint[:19]}...), "
            f"not on {backbone.name} ({backbone.fingerprint[:19]}...): load that backbone"
        )


def _load(backbone: Backbone, folder: Path, *, frozen: bool) -> PeftModel:
    _require_bare(backbone)
    saved = _read_tensors(folder / _WEIGHTS)
    check_weights(saved, str(folder))
    config = _read_config(folder)
    config.inference_mode = frozen
    try:
        model = _wrap(backbone, config)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the adapter in {folder} does not fit {backbone.name}: {reason}"
        ) from None
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    misfits = sorted(
        name
        for name in wanted.keys() | saved.keys()
        if name not in wanted or name not in saved or wanted[name].shape != saved[name].shape
    )
    if misfits:
        model.unload()
        raise ValueError(
            f"the adapter in {folder} does not fit {backbone.name}: {len(misfits)} tensors are "
            f"missing, have no place or another shape, such as {misfits[0]}"
        )
    set_peft_model_state_dict(model, saved)
    return model


def check_weights(tensors: dict[str, Tensor], where: str) -> None:
    """An adapter that changes nothing, or that cannot compute, is a failed save.

    Raises:
        ValueError: If there are no tensors, one is not finite, or an update is zero.
    """
    if not tensors:
        raise ValueError(f"the adapter in {where} has no tensors: it was saved empty; tune again")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the adapter in {where} is not finite: {name}; tune again")
        if not tensor.any():
            raise ValueError(
                f"the adapter in {where} is zero in {name}: it was never tuned or lost its "
                f"weights; tune again"
            )


def _read_config(folder: Path) -> PeftConfig:
    path = folder / _CONFIG
    if not path.is_file():
        raise ValueError(f"the adapter's configuration is missing: there is no {path}")
    try:
        config: PeftConfig = LoraConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the adapter's configuration cannot be read: {path}: {error}") from None
    config.base_model_name_or_path = None  # the card has told; PEFT would warn of another path
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise ValueError(f"the adapter's weights are missing: there is no {path}") from None
    except SafetensorError as error:
        raise ValueError(f"the adapter's weights cannot be read: {path}: {error}") from None
