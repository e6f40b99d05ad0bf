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
from tallrec.data.samples import build_samples, random_targets
from tallrec.data.splits import SPLITS, split_users
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
        source: Where a named data set's files lie (folder or zip); its asset, if it has one,
            unless given.
        say: Shows terms of use when an asset is fetched.
        table: Arguments of `read_table`, for a path.

    Raises:
        ValueError: If there is nothing of that name, or its files are not right.
    """
    if name in DATASETS:
        check_source(name, source)
        return DATASETS[name](source or fetch(name, on_terms=say))
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"there is no data set {name!r}: give a file of interactions, or one of "
            f"{', '.join(DATASETS)}"
        )
    return read_table(path, **table)


def check_source(name: str, source: Path | None) -> None:
    """Refuses a named data set whose files are neither given nor to be fetched.

    Raises:
        ValueError: If that is so.
    """
    if source is not None and not source.exists():
        raise ValueError(f"there is no folder or zip file {source}")
    if source is None and name not in ASSETS:
        raise ValueError(
            f"{name} cannot be fetched, because its files may not be passed on: get them from its "
            f"publisher and give their folder or zip file (--source, data.source in a recipe)"
        )


def prepare(
    dataset: Dataset,
    out: Path,
    *,
    split: str,
    history: int = 10,
    min_history: int | None = None,
    like_above: float | None = None,
    implicit: bool | None = None,
    seed: int = 0,
    paper_json: bool = False,
) -> dict[str, Any]:
    """Writes a prepared folder with its audit.

    The split `paper` of books has a sample rule of its own, `random_targets`, with the users split
    as in `users`; every other split is one of the samples of `build_samples`.

    Args:
        dataset: Interactions and catalogue.
        out: The folder; must not exist.
        split: A key of `SPLITS`.
        history: The longest history of a sample.
        min_history: The shortest; `history` unless given, 3 for the split `paper` of books.
        like_above: A rating above this is a like; the data set's own border unless given.
        implicit: Whether interactions without a rating are kept, as dislikes; only for the split
            `paper` unless given.
        seed: Seed of the split `users`, and of the split `paper` of books.
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
    implicit = _keeps_unrated(dataset, split, implicit)
    if min_history is None:
        min_history = min(3, history) if _has_random_targets(dataset, split) else history
    like_above = dataset.like_above if like_above is None else like_above
    splits = _splits(
        dataset if implicit else dataset.explicit(),
        split,
        seed,
        history=history,
        min_history=min_history,
        like_above=like_above,
    )
    info = PreparedInfo(
        dataset.name, dataset.domain, split, history, min_history, like_above, seed, implicit
    )
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


def _has_random_targets(dataset: Dataset, split: str) -> bool:
    return split == "paper" and dataset.domain == "book"


def _keeps_unrated(dataset: Dataset, split: str, implicit: bool | None) -> bool:
    if dataset.unrated is not None:
        return split == "paper" if implicit is None else implicit
    if implicit is None:
        return False
    raise ValueError(
        f"--implicit and --explicit are for data with unrated interactions, such as "
        f"book-crossing; in {dataset.name} every row is taken to have a rating"
    )


def _splits(dataset: Dataset, split: str, seed: int, **rule: Any) -> Splits:
    if _has_random_targets(dataset, split):
        return split_users(random_targets(dataset, seed=seed, **rule), seed=seed)
    return SPLITS[split](
        build_samples(dataset, **rule), **({"seed": seed} if split == "users" else {})
    )


def prepare_recipe(data: DataRecipe, folder: Path, *, say: Say = print) -> Path:
    """The prepared folder of a recipe: its own if it names one, else made in `folder`."""
    if data.dataset not in DATASETS and Path(data.dataset).is_dir():
        return Path(data.dataset)
    if not folder.exists():
        prepare(
            load_dataset(data.dataset, source=data.source, say=say),
            folder,
            split=data.split,
            history=data.history,
            min_history=data.min_history,
            like_above=data.like_above,
            implicit=data.implicit,
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
