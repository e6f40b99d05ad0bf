"""In-context learning in every domain, as the paper measures it (TALLRec, section 4.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tallrec.baselines.endpoint import Endpoint
from tallrec.evaluate import Column, matrix_page
from tallrec.steps.data import Say
from tallrec.steps.in_context import in_context
from tallrec.steps.paper_tables import write_files

_INTRO = (
    "A model that is not tuned, asked as the paper asks; shots are worked examples in its "
    "prompt. The paper has a picture of this: ChatGPT, GPT-3 and Alpaca stay near 0.5."
)


def in_context_table(
    folders: Mapping[str, Path],
    out: Path,
    model: Endpoint | str,
    *,
    templates: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
    rows: int | None = None,
    say: Say = print,
) -> str:
    """Asks a model about every domain in every template; nothing is asked twice.

    Args:
        folders: The prepared folder of each domain.
        out: `out / "icl"` gets the page and, in a folder for each domain, model and template, the
            answers and their report.
        model: An endpoint to ask, or the source of a local backbone.
        templates: Keys of `TEMPLATES`.
        shots: Numbers of worked examples.
        seeds: Seeds of the draws of examples.
        rows: How many test rows of each domain to ask about; all unless given.
        say: Shows a line to the user.

    Returns:
        The page that was written to `icl/report.md`.

    Raises:
        ValueError: See `in_context`.
    """
    name = model.model if isinstance(model, Endpoint) else Path(model).name
    folder_name = re.sub(r"[^\w.-]+", "-", name)
    columns, links = [], []
    for domain, folder in folders.items():
        results = []
        for template in templates:
            part = f"{domain}/{folder_name}-{template}"
            say(f"Asking {name} about {domain}s, template {template}: {out / 'icl' / part}")
            results.append(
                in_context(
                    folder,
                    out / "icl" / part,
                    model,
                    template=template,
                    shots=shots,
                    seeds=seeds,
                    rows=rows,
                    say=say,
                )
            )
            links.append(f"[{domain}s, {template}]({part}/report.md)")
        systems = {s["name"]: s for result in results for s in result["systems"]}
        columns.append(
            Column(domain, max(shots), {**results[0], "systems": list(systems.values())})
        )
    answers = (
        f"How each row was answered, with refusals, ties, tokens and cost: {', '.join(links)}."
    )
    page = matrix_page("In-context learning", _INTRO, "system", columns, [answers])
    write_files(out / "icl", page, columns, {})
    return page
