"""Planted taste: data in which the right answer is known and every count is worthless.

A checkerboard: every item is of the sea or of the hills, every user likes all of one kind and
nothing of the other. All like about half of what they see and every item is liked by half of the
users, so a scorer that beats 0.5 here has read *what* a user liked.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import polars as pl

from tallrec.types import FloatArray, Samples, Splits

N_UNSEEN = 2


def planted_splits(users: int = 60, items: int = 20, history: int = 8, seed: int = 0) -> Splits:
    """Users of either taste, each meeting all items in an order of their own.

    The parts are disjoint in users (half train, a quarter valid, a quarter test). The last
    `N_UNSEEN` items of the catalogue have no event.
    """
    rng = np.random.default_rng(seed)
    seen = np.concatenate([rng.permutation(items) for _ in range(users)])
    user = np.repeat(np.arange(users), items)
    liked = seen % 2 == user % 2
    names = [f"{'Sea' if i % 2 else 'Hill'} {i}" for i in range(items + N_UNSEEN)]
    catalog = pl.DataFrame(
        {"item": [f"i{i}" for i in range(len(names))], "title": names},
    ).with_columns(creator=pl.lit(None, pl.String))
    user_ids = pl.Enum([f"u{i}" for i in range(users)])
    item_ids = pl.Enum(catalog["item"])
    events = pl.DataFrame(
        {
            "user": pl.Series([f"u{u}" for u in user], dtype=user_ids),
            "item": pl.Series([f"i{i}" for i in seen], dtype=item_ids),
            "liked": liked,
            "rating": np.where(liked, 5, 1).astype(np.float32),
            "timestamp": np.arange(len(seen)),
        }
    )
    stop = np.flatnonzero(np.arange(len(seen)) % items >= history)
    rows = events[stop].select(
        "user",
        pl.Series("start", stop - history),
        pl.Series("stop", stop),
        pl.col("item").alias("target"),
        "liked",
        "timestamp",
    )
    samples = Samples(catalog, events, rows)
    half, three_quarters = (users * k // 4 * (items - history) for k in (2, 3))
    return Splits(
        train=samples[:half], valid=samples[half:three_quarters], test=samples[three_quarters:]
    )


def planted_taste(samples: Samples) -> FloatArray:
    """A scorer that knows the rule: likes in the history of the target's kind, less dislikes."""
    return np.array(
        [
            sum(
                1.0 if liked == (kind(item.title) == kind(sample.target.title)) else -1.0
                for item, liked in sample.history
            )
            for sample in samples
        ]
    )


def kind(title: str) -> str:
    """Sea or Hill."""
    return title.split(maxsplit=1)[0]


def write_instructions(path: Path, n: int) -> None:
    """Invented general instructions in Alpaca's format: say a colour one, two, ... n times."""
    colours = itertools.cycle(["blue", "red"])
    records = [
        {"instruction": f"Say {colour} {i} times.", "input": "", "output": f"{colour} " * i}
        for i, colour in zip(range(1, n + 1), colours, strict=False)
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
