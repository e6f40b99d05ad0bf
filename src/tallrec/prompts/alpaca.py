"""The instruction format of Stanford Alpaca (Taori et al., 2023), which the paper's prompt uses."""

from __future__ import annotations

_HEADER = "Below is an instruction that describes a task"
_WITH_INPUT = ", paired with an input that provides further context"
_REQUEST = "Write a response that appropriately completes the request."


def instruction_prompt(instruction: str, about: str = "", *, aside: str = "") -> str:
    """The text before a response (TALLRec, section 3.1).

    Args:
        instruction: The task.
        about: The input; without one the format has no such section.
        aside: Text at the end of the header; the paper's released prompt has some.
    """
    section = f"### Input:\n{about}\n\n" if about else ""
    return (
        f"{_HEADER}{_WITH_INPUT if about else ''}. {_REQUEST}{aside}\n\n"
        f"### Instruction:\n{instruction}\n\n{section}### Response:\n"
    )
