"""A tuned run as files that other programs load: merged weights, GGUF, or the bare adapter."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from tallrec.files import whole_folder
from tallrec.llm.adapter import AdapterCard, load_adapter, read_card
from tallrec.llm.backbone import Backbone, locate
from tallrec.llm.gguf_file import KINDS, check_architecture, write_gguf
from tallrec.llm.merge import fold
from tallrec.quiet import without_bars
from tallrec.run import RunDir
from tallrec.steps.data import Say, backbone_source
from tallrec.steps.model_card import model_card
from tallrec.steps.score import finished_run
from tallrec.steps.tune import load

FORMATS = ("merged", "gguf", "peft")


def export_run(
    path: Path,
    to: str,
    out: Path,
    *,
    seed: int | None = None,
    kind: str | None = None,
    say: Say = print,
) -> None:
    """Writes one seed of a finished run as a folder that other programs load, with a model card.

    Args:
        path: The run.
        to: `merged` (a Hugging Face folder), `gguf` (one file for llama.cpp and Ollama) or `peft`
            (the adapter; its base model too if that was read from a GGUF file).
        out: The folder to write; must not exist. It appears whole or not at all.
        seed: Which seed; the first unless given.
        kind: How a GGUF file keeps its matrices; as the run's dtype unless given. See `KINDS`.
        say: Shows a line to the user.

    Raises:
        ValueError: If an option is not right, the run is unfinished or has no adapter, or its
            backbone cannot be written in that format.
    """
    run, seed, folder = _chosen(path, to, out, seed, kind)
    card = read_card(folder)
    with whole_folder(out) as partial, without_bars():
        if to == "peft":
            _write_peft(run, folder, partial, say)
            dtype = "float32"
        else:
            backbone = load(run.recipe, say=say)
            dtype = str(backbone.model.dtype).removeprefix("torch.")
            if to == "gguf":
                dtype = kind or dtype
                _write_gguf(run, backbone, folder, partial / f"{run.path.name}.gguf", dtype, say)
            else:
                fold(load_adapter(backbone, folder)).save_pretrained(partial)
                backbone.tokenizer.save_pretrained(partial)
            _write_card(partial, card)
        shutil.copy(run.path / "recipe.toml", partial)
        text = model_card(run, card, seed=seed, to=to, dtype=dtype, files=_names(partial))
        (partial / "README.md").write_text(text, encoding="utf-8")


def _chosen(
    path: Path, to: str, out: Path, seed: int | None, kind: str | None
) -> tuple[RunDir, int, Path]:
    """The run, the seed and its adapter's folder, once all options are right."""
    if to not in FORMATS:
        raise ValueError(f"--to must be one of {', '.join(FORMATS)}; got {to!r}")
    if kind is not None and (to != "gguf" or kind not in KINDS):
        raise ValueError(f"--type is of --to gguf, one of {', '.join(KINDS)}; got {kind!r}")
    if out.exists():
        raise ValueError(f"{out} exists already: give another --out, or remove it first")
    run = finished_run(path)
    seeds = run.recipe.seeds
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ValueError(f"{path} has the seeds {', '.join(map(str, seeds))}; got {seed}")
    folder = run.adapter(seed)
    if folder is None:
        raise ValueError(f"{path} has no adapter: its recipe measures the backbone as it is")
    return run, seed, folder


def _write_peft(run: RunDir, adapter: Path, out: Path, say: Say) -> None:
    shutil.copytree(adapter, out, dirs_exist_ok=True)
    base = run.recipe.backbone.source
    if gguf_of(run, say) is not None:  # plain PEFT has no other way to these weights
        base = "base"
        backbone = load(run.recipe, say=say)
        backbone.model.save_pretrained(out / base)
        backbone.tokenizer.save_pretrained(out / base)
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"base_model_name_or_path": base}, indent=2) + "\n"
    (out / "adapter_config.json").write_text(text, encoding="utf-8")


def _write_gguf(
    run: RunDir, backbone: Backbone, adapter: Path, path: Path, kind: str, say: Say
) -> None:
    check_architecture(backbone.model)  # before the adapter is folded in
    write_gguf(
        fold(load_adapter(backbone, adapter)),
        backbone.tokenizer,
        path,
        kind=kind,
        like=gguf_of(run, say),
        name=f"{backbone.name} tuned by tallrec",
    )


def gguf_of(run: RunDir, say: Say) -> Path | None:
    """The GGUF file that the run's backbone is read from, if it is one."""
    return locate(str(backbone_source(run.recipe.backbone.source, say=say)))[1]


def _write_card(out: Path, card: AdapterCard) -> None:
    text = json.dumps(asdict(card), indent=2) + "\n"
    (out / "tallrec.json").write_text(text, encoding="utf-8")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
