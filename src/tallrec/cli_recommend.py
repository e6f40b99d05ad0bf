"""`tallrec recommend` and `tallrec score`: a finished run at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tallrec.cli_options import (
    BUCKETS,
    AddressOption,
    BaseUrlOption,
    BucketsOption,
    CompletionsOption,
    ConcurrencyOption,
    EngineOption,
    KeyVariableOption,
    WorkersOption,
    check_no_cluster,
    cluster_of,
    end_with,
    resumable,
)
from tallrec.cli_runs import ByOption, RunArgument
from tallrec.console import say, show

DataOption = Annotated[
    Path | None, typer.Option("--data", help="A prepared folder instead of the run's own.")
]


def recommend(
    run: RunArgument,
    user: Annotated[str | None, typer.Option(help="A user id of the data set.")] = None,
    likes: Annotated[
        list[str] | None,
        typer.Option(help="Instead: a title liked; several with ; between them, or again --likes."),
    ] = None,
    dislikes: Annotated[list[str] | None, typer.Option(help="A title disliked.")] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many items.")] = 10,
    only: Annotated[
        str | None, typer.Option(help="Only titles that hold this regular expression.")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option(help="Choose from these: a file with one id or title a line.")
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="But not from these: a file with one id or title a line.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Show what moved each score most.")] = True,
    data: DataOption = None,
    by: ByOption = None,
) -> None:
    """Rank the items that a user, or someone with these likes, has not met yet."""
    if (user is None) == (not likes and not dislikes):
        raise ValueError("give either --user, or titles with --likes and --dislikes")
    from tallrec.progress import shown
    from tallrec.recommend import recommendations_table
    from tallrec.steps.recommender import Recommender
    from tallrec.steps.wishes import candidates_of, history_of_titles

    recommender = Recommender.load(run, data=data, by=by, say=say)
    if user is not None:
        history, whom = recommender.history_of(user), f"user {user}"
    else:
        history, whom = history_of_titles(recommender, likes or [], dislikes or []), "you"
        titles = dict(recommender.items.select("item", "title").iter_rows())
        for item, liked in history:
            say(f"{'Liked' if liked else 'Disliked'}: {titles[item]}")
    left = candidates_of(recommender, only=only, listed=candidates, excluded=exclude)
    with shown("Ranking") as on_progress:
        best = recommender.showing(on_progress).rank(history, left, k=top)
    effects = recommender.explain(history, *best["item"]) if explain else None
    show(recommendations_table(best, whom, effects))


def score(
    run: RunArgument,
    out: Annotated[
        str, typer.Option(help="The Parquet file to write; a folder, for ray.", metavar="PATH")
    ],
    table: Annotated[
        str | None,
        typer.Option(
            help="Score this Parquet file: item, and user or history; see the docs. Ray takes "
            "folders, patterns and URLs.",
            metavar="PATH",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A prepared folder instead of the run's own.", metavar="PATH"),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(help="Or which part: train, valid or test.", show_default="test"),
    ] = None,
    by: ByOption = None,
    engine: EngineOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    buckets: BucketsOption = BUCKETS,
    model: Annotated[
        str | None, typer.Option(help="Ray: a model of an endpoint, asked instead of the run's.")
    ] = None,
    base_url: BaseUrlOption = None,
    key_variable: KeyVariableOption = None,
    completions: CompletionsOption = False,
    concurrency: ConcurrencyOption = 4,
) -> None:
    """Write the log-odds of a like for every row of a table, or every sample of a part."""
    if table is not None and part is not None:
        raise ValueError("give either --table or --part")
    if engine is not None:
        if table is None:
            raise ValueError("--engine ray scores a --table")
        from tallrec.baselines.endpoint import OPENAI, Endpoint
        from tallrec.steps.score_on_ray import score_on_ray

        cluster = cluster_of(engine, address, workers)
        endpoint = None
        if model is not None:
            endpoint = Endpoint(
                model=model,
                base_url=base_url or OPENAI,
                api="completions" if completions else "chat",
                key_variable=key_variable,
                concurrency=concurrency,
            )
        with resumable("bucket"):
            tally = score_on_ray(
                run,
                table,
                out,
                data=data,
                by=by,
                endpoint=endpoint,
                buckets=buckets,
                cluster=cluster,
                say=say,
            )
        end_with(tally, out, "scores")
        return
    check_no_cluster(address, workers)
    if model is not None:
        raise ValueError("--model is for --engine ray")
    folder = Path(data) if data is not None else None
    if table is not None:
        from tallrec.steps.score_pairs import score_pairs

        with resumable("chunk"):
            rows = score_pairs(run, Path(table), Path(out), data=folder, by=by, say=say)
    else:
        from tallrec.steps.asked import score_run

        rows = score_run(run, Path(out), data=folder, part=part or "test", by=by, say=say).height
    say(f"{rows:,} scores written to {out}")
