"""Scorers that a tuned model has to beat, each fitted by a function that returns it."""

from tallrec.baselines.trivial import COUNTING_BASELINES

__all__ = ["COUNTING_BASELINES"]
