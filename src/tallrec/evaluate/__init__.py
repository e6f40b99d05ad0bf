"""Honest evaluation: metrics, intervals over users, comparison with counting, reports.

`tallrec.evaluate.plots` is imported by whoever draws, so that the rest stays free of matplotlib.
"""

from tallrec.evaluate.ablation import (
    Part,
    ablation_page,
    by_shots,
    findings,
    summarize_ablation,
)
from tallrec.evaluate.compare import compare
from tallrec.evaluate.metrics import METRICS, Metric
from tallrec.evaluate.render import to_markdown, to_png, to_table, write_report
from tallrec.evaluate.report import paired_differences, summarize
from tallrec.evaluate.reproduction import Column, long_table, matrix_page, table_page
from tallrec.evaluate.schema import COUNTING, MODEL, AnswerCounts, Evaluation, Result, System

__all__ = [
    "COUNTING",
    "METRICS",
    "MODEL",
    "AnswerCounts",
    "Column",
    "Evaluation",
    "Metric",
    "Part",
    "Result",
    "System",
    "ablation_page",
    "by_shots",
    "compare",
    "findings",
    "long_table",
    "matrix_page",
    "paired_differences",
    "summarize",
    "summarize_ablation",
    "table_page",
    "to_markdown",
    "to_png",
    "to_table",
    "write_report",
]
