"""`tallrec prepare`: a data set becomes a prepared folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallrec.cli_options import (
    BUCKETS,
    AddressOption,
    BucketsOption,
    EngineOption,
    WorkersOption,
    check_no_cluster,
    cluster_of,
    end_with,
    resumable,
)
from tallrec.console import say, show_markdown

if TYPE_CHECKING:
    from tallrec.types import Dataset


def prepare(
    out: Annotated[str, typer.Option(help="The folder to write; must not exist.", metavar="PATH")],
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="movielens-100k, movielens-1m, book-crossing or a table file. Ray takes Parquet "
            "files, folders, patterns and URLs.",
        ),
    ] = None,
    from_feedback: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Instead of DATASET, the database of feedback of 'tallrec serve'."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="users, time or paper.")] = "users",
    source: Annotated[
        Path | None, typer.Option(help="Folder or zip of a named data set's original files.")
    ] = None,
    history: Annotated[int, typer.Option(help="Longest history of a sample, in events.")] = 10,
    min_history: Annotated[
        int | None,
        typer.Option(
            help="Shortest history of a sample.", show_default="--history; 3 for 'paper' of books"
        ),
    ] = None,
    like_above: Annotated[
        float | None,
        typer.Option(help="A rating above this is a like.", show_default="3; book-crossing: 5"),
    ] = None,
    implicit: Annotated[
        bool | None,
        typer.Option(
            "--implicit/--explicit",
            help="Keep interactions without a rating (0 in book-crossing) as dislikes, or leave "
            "them out.",
            show_default="implicit for the split 'paper', else explicit",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the split 'users', and of 'paper' for books.")
    ] = 0,
    paper_json: Annotated[
        bool, typer.Option("--paper-json", help="Write the paper's JSON files as well.")
    ] = False,
    user: Annotated[str | None, typer.Option(help="Table: column of user ids.")] = None,
    item: Annotated[str | None, typer.Option(help="Table: column of item ids.")] = None,
    rating: Annotated[str | None, typer.Option(help="Table: column of ratings.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Table: column of timestamps.")] = None,
    title: Annotated[str | None, typer.Option(help="Table: column of item titles.")] = None,
    creator: Annotated[str | None, typer.Option(help="Table: column of creators.")] = None,
    items: Annotated[
        str | None, typer.Option(help="Table: a second file with the titles.", metavar="PATH")
    ] = None,
    items_id: Annotated[str | None, typer.Option(help="Table: item id column of --items.")] = None,
    separator: Annotated[
        str | None, typer.Option(help="Table: such as ';', '::' or '\\t'.")
    ] = None,
    header: Annotated[bool, typer.Option(help="Table: whether row 1 names the columns.")] = True,
    encoding: Annotated[str, typer.Option(help="Table: such as latin-1.")] = "utf-8",
    quoting: Annotated[bool, typer.Option(help='Table: whether " encloses fields.')] = True,
    domain: Annotated[str, typer.Option(help="Table: the noun for an item.")] = "item",
    engine: EngineOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    buckets: BucketsOption = BUCKETS,
) -> None:
    """Turn a data set into a prepared folder: samples, splits and an audit."""
    from tallrec.data import DATASETS
    from tallrec.data.audit import audit_markdown
    from tallrec.steps.data import load_dataset
    from tallrec.steps.data import prepare as prepare_step

    if (dataset is None) == (from_feedback is None):
        raise ValueError("give either DATASET or --from-feedback")
    names = {
        "user": user,
        "item": item,
        "rating": rating,
        "timestamp": timestamp,
        "title": title,
        "creator": creator,
    }
    columns = {role: name for role, name in names.items() if name is not None}
    if engine is not None:
        if dataset is None or dataset in DATASETS:
            raise ValueError("--engine ray prepares a table of interactions")
        from tallrec.steps.prepare_on_ray import prepare_on_ray

        with resumable("bucket"):
            tally = prepare_on_ray(
                dataset,
                out,
                split=split,
                history=history,
                min_history=min_history,
                like_above=like_above,
                seed=seed,
                columns=columns,
                items=items,
                items_id=items_id,
                domain=domain,
                buckets=buckets,
                cluster=cluster_of(engine, address, workers),
                say=say,
            )
        end_with(tally, out, "samples")
        return
    check_no_cluster(address, workers)
    table = (
        {}
        if dataset in DATASETS
        else {
            "columns": columns,
            "items": Path(items) if items is not None else None,
            "items_id": items_id,
            "separator": separator,
            "header": header,
            "encoding": encoding,
            "quoting": quoting,
            "domain": domain,
        }
    )
    audit = prepare_step(
        _feedback(from_feedback)
        if from_feedback is not None
        else load_dataset(str(dataset), source=source, say=say, **table),
        Path(out),
        split=split,
        history=history,
        min_history=min_history,
        like_above=like_above,
        implicit=implicit,
        seed=seed,
        paper_json=paper_json,
    )
    show_markdown(audit_markdown(audit))
    say(f"Written to {out}")


def _feedback(url: str) -> Dataset:
    from tallrec.serve import check_installed

    check_installed()
    from tallrec.serve.feedback import FeedbackStore

    return FeedbackStore(url).dataset()
