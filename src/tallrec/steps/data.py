"""The data steps: a source becomes a prepared folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from tallrec.assets import ASSETS, fetch
from tallrec.data import DATASETS
from tallrec.data.audit import audit, audit_markdown
from tallrec.data.instructions import READERS
from tallrec.data.prepared import PreparedInfo, read_prepared, write_prepared
from tallrec.data.samples import build_samples
from tallrec.data.splits import SPLITS
from tallrec.data.table import read_table
from tallrec.prompts.paper import paper_record
from tallrec.recipe import DataRecipe
from tallrec.types import Dataset, Splits

Say = Callable[[str], None]


def load_dataset(
    name: str, *, source: Path | None = None, say: Say = print, **table: Any
) -> Dataset:
    """Reads a data set.

    Args:
        name: A key of `DATASETS`, or the path of a table of interactions.
        source: Where a named data set's files lie (folder or zip); the embedded asset if None.
        say: Shows terms of use when an asset is fetched.
        table: Arguments of `read_table`, for a path.

    Raises:
        ValueError: If there is nothing of that name, or its files are not right.
    """
    if name in DATASETS:
        return DATASETS[name](source or fetch(name, on_terms=say))
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"there is no data set {name!r}: give a file of interactions, or one of "
            f"{', '.join(DATASETS)}"
        )
    return read_table(path, **table)


def prepare(
    dataset: Dataset,
    out: Path,
    *,
    split: str,
    history: int = 10,
    min_history: int | None = None,
    like_above: float = 3.0,
    seed: int = 0,
    paper_json: bool = False,
) -> dict[str, Any]:
    """Writes a prepared folder with its audit.

    Args:
        dataset: Interactions and catalogue.
        out: The folder; must not exist.
        split: A key of `SPLITS`.
        history: The longest history of a sample.
        min_history: The shortest; `history` unless given.
        like_above: A rating above this is a like.
        seed: Seed of the split `users`.
        paper_json: Whether to write the parts in the paper's JSON format as well.

    Returns:
        The audit.

    Raises:
        ValueError: If an option or the folder is not right.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: give another --out, or remove it first")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    samples = build_samples(
        dataset, history=history, min_history=min_history, like_above=like_above
    )
    splits = SPLITS[split](samples, **({"seed": seed} if split == "users" else {}))
    shortest = history if min_history is None else min_history
    info = PreparedInfo(dataset.name, dataset.domain, split, history, shortest, like_above, seed)
    result = audit(splits)
    files = {
        "audit.json": (json.dumps(result, indent=2) + "\n").encode(),
        "audit.md": audit_markdown(result).encode(),
    }
    if paper_json:
        pages = paper_files(splits, dataset.domain)
        files |= {f"paper/{name}": content for name, content in pages.items()}
    write_prepared(out, splits, info, files)
    return result


def prepare_recipe(data: DataRecipe, folder: Path, *, say: Say = print) -> Path:
    """The prepared folder of a recipe: its own if it names one, else made in `folder`."""
    if data.dataset not in DATASETS and Path(data.dataset).is_dir():
        return Path(data.dataset)
    if not folder.exists():
        prepare(
            load_dataset(data.dataset, say=say),
            folder,
            split=data.split,
            history=data.history,
            min_history=data.min_history,
            like_above=data.like_above,
            seed=data.seed,
        )
    read_prepared(folder)
    return folder


def paper_files(splits: Splits, domain: str) -> dict[str, bytes]:
    """train.json, valid.json and test.json exactly as the paper's released files."""
    return {
        f"{name}.json": json.dumps([paper_record(s, domain) for s in part], indent=4).encode()
        for name, part in splits.parts().items()
    }


def backbone_source(source: str, *, say: Say = print) -> str | Path:
    """The folder of an embedded backbone, fetched if need be; any other source as it is."""
    return fetch(source, on_terms=say) if source in ASSETS else source


def instructions_source(source: str) -> Path:
    """The file or folder of instruction records; a data set of the hub is downloaded.

    Raises:
        ValueError: If there is neither such a path nor such a data set.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.suffix in READERS:
        raise ValueError(f"there is no file or folder of instructions at {source}")
    try:
        return Path(
            snapshot_download(
                source,
                repo_type="dataset",
                allow_patterns=[f"*{suffix}" for suffix in READERS],
                etag_timeout=10,
            )
        )
    except Exception as error:  # of whatever HTTP library the hub's client uses
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"there is no file or folder {source}, and no data set of that name could be fetched "
            f"from the Hugging Face hub: {reason}"
        ) from error
