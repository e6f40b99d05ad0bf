"""The template of the paper: the exact text of its released data and of its instruction format.

Source: TALLRec (Bao et al., RecSys 2023), section 3.1 and the released data files. The released
prompt carries a stray `# noqa: E501` comment of its source file; `paper-clean` is without it.
"""

from __future__ import annotations

from tallrec.prompts.alpaca import instruction_prompt
from tallrec.prompts.text import Prompt, clean, quoted
from tallrec.types import Sample

_STRAY = "  # noqa: E501"


def paper_record(sample: Sample, domain: str) -> dict[str, str]:
    """A sample as a record of the paper's JSON files: instruction, input and output.

    Args:
        sample: The sample; its label must be known.
        domain: The noun for an item, `movie` or `book` in the paper.

    Raises:
        ValueError: If the sample has no label.
    """
    if sample.liked is None:
        raise ValueError("a record of the paper's format needs the sample's label")
    return {
        "instruction": _instruction(domain),
        "input": _input(sample, domain),
        "output": "Yes." if sample.liked else "No.",
    }


def render_paper(sample: Sample, domain: str) -> Prompt:
    """The released prompt, stray comment included; one answer, after `### Response:`."""
    return _render(sample, domain, _STRAY)


def render_paper_clean(sample: Sample, domain: str) -> Prompt:
    """The released prompt without its stray comment."""
    return _render(sample, domain)


def _render(sample: Sample, domain: str, aside: str = "") -> Prompt:
    text = instruction_prompt(_instruction(domain), _input(sample, domain), aside=aside)
    return Prompt((text,), (sample.liked,))


def _instruction(domain: str) -> str:
    return (
        f"Given the user's preference and unpreference, identify whether the user will like the "
        f'target {domain} by answering "Yes." or "No.".'
    )


def _input(sample: Sample, domain: str) -> str:
    by = "written by" if domain == "book" else "by"
    liked, disliked = (
        ", ".join(quoted(item, by) for item, like in sample.history if like is wanted)
        for wanted in (True, False)
    )
    target = quoted(sample.target, by)
    if clean(sample.target.creator or ""):
        target = f'"{target}"'  # the released book files quote the whole slot once more
    return (
        f"User Preference: {liked}\nUser Unpreference: {disliked}\n"
        f"Whether the user will like the target {domain} {target}?"
    )
