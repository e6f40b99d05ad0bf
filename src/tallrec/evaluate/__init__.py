"""Honest evaluation: metrics, intervals over users, comparison with counting, reports.

`tallrec.evaluate.plots` is imported by whoever draws, so that the rest stays free of matplotlib.
"""

from tallrec.evaluate.compare import compare
from tallrec.evaluate.metrics import METRICS, Metric
from tallrec.evaluate.render import to_markdown, to_table, write_report
from tallrec.evaluate.report import summarize
from tallrec.evaluate.schema import COUNTING, MODEL, Evaluation, Result, System

__all__ = [
    "COUNTING",
    "METRICS",
    "MODEL",
    "Evaluation",
    "Metric",
    "Result",
    "System",
    "compare",
    "summarize",
    "to_markdown",
    "to_table",
    "write_report",
]
