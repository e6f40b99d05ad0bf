"""How the cost of scoring grows with rows, with the length of histories and with candidates.

    python benchmarks/growth.py --rows 100,1000,10000

Timeline prompts of MovieLens-100K on SmolLM2-135M as it is, one process, each figure once after a
warm-up: seconds, and computed tokens of all tokens.
"""

from __future__ import annotations

import argparse

from work import clock

from tallrec.assets import fetch
from tallrec.data.histories import history_of, samples_of_histories
from tallrec.data.movielens import read_movielens_100k
from tallrec.data.samples import build_samples, in_blocks
from tallrec.llm.backbone import Backbone, load_backbone
from tallrec.llm.scoring import score_rows
from tallrec.llm.tree import build_tree
from tallrec.prompts import TEMPLATES
from tallrec.prompts.answers import encode, resolve_answers
from tallrec.types import Samples

HISTORIES, CANDIDATES = (5, 10, 20, 40), (100, 400, 1600)


def measure(what: str, backbone: Backbone, samples: Samples) -> None:
    """Scores samples and prints a line."""
    template = TEMPLATES["timeline"]
    answers = resolve_answers(backbone.tokenizer, template, "movie")
    rows = encode(
        backbone.tokenizer,
        template,
        answers,
        samples,
        domain="movie",
        max_tokens=2048,
    )
    start = clock()
    score_rows(backbone.model, rows, answers)
    seconds = clock() - start
    tokens = sum(len(row.prompt) for row in rows)
    distinct = len(build_tree([row.prompt for row in rows]).ids_n)
    print(
        f"{what:44} {seconds:8.2f} s {1000 * seconds / len(rows):8.2f} ms a row "
        f"{distinct:9,} of {tokens:9,} tokens",
        flush=True,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="100,1000,10000")
    options = parser.parse_args()
    dataset = read_movielens_100k(fetch("movielens-100k"))
    backbone = load_backbone(fetch("smollm2-135m"))
    sliding = build_samples(dataset)
    blocks = in_blocks(sliding, 10)
    measure("warm-up", backbone, sliding[:20])
    for n in map(int, options.rows.split(",")):
        measure(f"{n:,} rows, blocks of 10", backbone, blocks[-n:])
        if n <= 1000:
            measure(f"{n:,} rows, sliding histories", backbone, sliding[-n:])
    events = history_of(sliding, sliding[len(sliding) - 1].user)
    catalog, items = sliding.catalog, sliding.catalog["item"].to_list()
    for n in CANDIDATES:
        asked = samples_of_histories(catalog, [events], items[:n], longest=10)
        measure(f"{n:,} candidates, history of 10", backbone, asked)
    for history in HISTORIES:
        asked = samples_of_histories(catalog, [events], items[:400], longest=history)
        measure(f"400 candidates, history of {history}", backbone, asked)


if __name__ == "__main__":
    main()
