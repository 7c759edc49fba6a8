"""cl_bench: a continual-learning benchmark, one command a run."""

__version__ = "0.1.0"
