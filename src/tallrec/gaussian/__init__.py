"""A recommender for few shots: a Gaussian process over opinions, and what a backbone knows."""

from tallrec.gaussian.crowd import CrowdProcess
from tallrec.gaussian.files import load_process, save_process
from tallrec.gaussian.process import GaussianProcess
from tallrec.gaussian.titles import Describe, Titles

__all__ = ["CrowdProcess", "Describe", "GaussianProcess", "Titles", "load_process", "save_process"]
