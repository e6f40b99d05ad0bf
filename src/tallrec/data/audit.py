"""What a reader should know about a split before believing a figure measured on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, permutations
from typing import Any

import numpy as np

from tallrec.data.audit_counts import Look, Pairs, codes, look_at
from tallrec.types import BoolArray, IntArray, Splits

FEW_USERS = 100
"""With fewer test users than this, the audit warns of wide intervals."""


def audit(splits: Splits) -> dict[str, Any]:
    """Counts what the parts of a split share, and what in them is repeated or out of order.

    Args:
        splits: Parts of one event table and one catalogue.

    Returns:
        A dictionary for JSON. Counts with a share are `{"count", "share"}`, the share null where
        there is nothing to count from:

        - `events`, `items`: how many there are.
        - `parts`, by name: `rows`, `users`, `items` (targets), `like_share`, `mean_history`.
        - `overlap`, by `"train and test"` and so on: `users` and `items` in both, as a share of
          the second part's.
        - `order`, null unless all events have timestamps: `after_first_test` by part (targets
          later than the earliest test target), `late_history` (history events later than their
          own target), `decreasing` (events earlier than the one before, of the same user).
        - `duplicates`: `events` (of a user with an item that an earlier event has too), `rows`
          by two parts (rows of the second whose user and target are a row of the first),
          `target_in_history` (rows whose target is in their own history).
        - `leaks`, by `"test in train"` and so on: rows of the first part whose target event, with
          its answer, is in a history of the second.
        - `warnings`: what to worry about, in plain words.
    """
    events = splits.train.events
    times = _times(splits)
    pairs = Pairs.of(events)
    found = {name: look_at(part, pairs, times) for name, part in splits.parts().items()}
    result: dict[str, Any] = {
        "events": events.height,
        "items": splits.train.catalog.height,
        "parts": {name: part.summary for name, part in found.items()},
        "overlap": {
            f"{a} and {b}": {
                "users": _overlap(found[a].users, found[b].users),
                "items": _overlap(found[a].items, found[b].items),
            }
            for a, b in combinations(found, 2)
        },
        "order": None if times is None else _order(splits, found, times),
        "duplicates": {
            "events": _share(events.height - pairs.count, events.height),
            "rows": {
                f"{a} and {b}": _share_of(found[a].asked[found[b].pairs])
                for a, b in combinations(found, 2)
            },
            "target_in_history": _share(
                sum(part.own_target for part in found.values()),
                sum(part.summary["rows"] for part in found.values()),
            ),
        },
        "leaks": {
            f"{a} in {b}": _share_of(found[b].shown[found[a].events])
            for a, b in permutations(found, 2)
        },
    }
    return result | {"warnings": _warnings(result)}


def audit_markdown(audit: dict[str, Any]) -> str:
    """The audit as a page: its warnings, then its figures in tables."""
    warnings = [f"- {warning}" for warning in audit["warnings"]] or ["Nothing to warn of."]
    parts = (
        (
            name,
            f"{part['rows']:,}",
            f"{part['users']:,}",
            f"{part['items']:,}",
            _percent(part["like_share"]),
            "-" if part["mean_history"] is None else f"{part['mean_history']:.1f}",
        )
        for name, part in audit["parts"].items()
    )
    overlap = (
        (names, _in_words(both["users"]), _in_words(both["items"]))
        for names, both in audit["overlap"].items()
    )
    lines = [
        *("# Audit", "", f"{audit['events']:,} events, {audit['items']:,} items.", ""),
        *("## Warnings", "", *warnings, ""),
        *("## Parts", ""),
        *_table(("part", "rows", "users", "items", "likes", "mean history"), parts),
        *("## In both parts", "", "Shares are of the second part.", ""),
        *_table(("parts", "users", "items"), overlap),
        *("## Checks", "", *_table(("check", "found"), _checks(audit))),
    ]
    return "\n".join(lines)


def _checks(audit: dict[str, Any]) -> Iterator[tuple[str, str]]:
    order = audit["order"]
    if order is None:
        yield "order in time", "no timestamps"
    else:
        for name, late in order["after_first_test"].items():
            yield f"{name} targets later than the first test target", _in_words(late)
        yield "history events later than their own target", _in_words(order["late_history"])
        yield "events earlier than the one before, same user", _in_words(order["decreasing"])
    duplicates = audit["duplicates"]
    yield "events that repeat a user and an item", _in_words(duplicates["events"])
    for names, rows in duplicates["rows"].items():
        yield f"rows with the same user and target in {names}", _in_words(rows)
    yield "rows with the target in their own history", _in_words(duplicates["target_in_history"])
    for names, leak in audit["leaks"].items():
        target, history = names.split(" in ")
        yield f"{target} targets in {history} histories", _in_words(leak)


def _warnings(audit: dict[str, Any]) -> list[str]:
    """What a reader should worry about."""
    leaks, duplicates, order = audit["leaks"], audit["duplicates"], audit["order"]
    counted = [
        (leaks["test in train"], "test targets stand in train histories with their answers"),
        (leaks["test in valid"], "test targets stand in valid histories with their answers"),
        (leaks["valid in train"], "valid targets stand in train histories with their answers"),
        *(
            (rows, f"rows have the same user and target in {names}")
            for names, rows in duplicates["rows"].items()
        ),
        (duplicates["target_in_history"], "rows have their target in their own history"),
        (duplicates["events"], "events repeat a user and an item"),
    ]
    if order is not None:
        late = "later than the first test target: the split is not by time"
        counted += [
            (order["after_first_test"]["train"], f"train targets are {late}"),
            (order["after_first_test"]["valid"], f"valid targets are {late}"),
            (order["late_history"], "history events are later than their own target"),
            (order["decreasing"], "events are earlier than the one before them of the same user"),
        ]
    found = [f"{_in_words(share)} {text}." for share, text in counted if share["count"]]
    if order is None:
        found.append("No timestamps: nothing about time could be checked.")
    test = audit["parts"]["test"]
    if test["users"] < FEW_USERS:
        found.append(
            f"The {test['rows']:,} test rows are of {test['users']} users: intervals over users "
            f"will be wide, whatever the number of rows."
        )
    if test["like_share"] in (None, 0, 1):
        found.append("The test rows do not have both answers: no AUC can be computed.")
    return found


def _order(splits: Splits, found: dict[str, Look], times: IntArray) -> dict[str, Any]:
    users = codes(splits.train.events["user"])
    decreasing = int(np.count_nonzero((times[1:] < times[:-1]) & (users[1:] == users[:-1])))
    moments = {name: part.rows["timestamp"].to_numpy() for name, part in splits.parts().items()}
    first_test = moments["test"].min(initial=np.iinfo(np.int64).max)
    return {
        "after_first_test": {
            name: _share_of(moments[name] > first_test) for name in ("train", "valid")
        },
        "late_history": _share(
            sum(part.late_history for part in found.values()),
            sum(part.history for part in found.values()),
        ),
        "decreasing": _share(decreasing, len(times)),
    }


def _times(splits: Splits) -> IntArray | None:
    """Time of each event, shape [n_events], if all are known."""
    tables = (splits.train.events, *(part.rows for part in splits.parts().values()))
    if any(table["timestamp"].null_count() for table in tables):
        return None
    return tables[0]["timestamp"].to_numpy()


def _overlap(first: BoolArray, second: BoolArray) -> dict[str, Any]:
    return _share(int((first & second).sum()), int(second.sum()))


def _share_of(true: BoolArray) -> dict[str, Any]:
    return _share(int(true.sum()), len(true))


def _share(count: int, total: int) -> dict[str, Any]:
    return {"count": count, "share": count / total if total else None}


def _in_words(share: dict[str, Any]) -> str:
    return f"{share['count']:,} ({_percent(share['share'])})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    rule = ("---", *["---:"] * (len(header) - 1))
    return [*(f"| {' | '.join(row)} |" for row in (header, rule, *rows)), ""]
