"""The package from Python: make a run, load one, and tables of many as pandas DataFrames.

`import cl_bench` offers what is defined here: `cl_bench.run`, `cl_bench.load`, `cl_bench.runs` and
`cl_bench.compare`. Everything below may be imported; nothing imports this room but the package
itself. Start with `making.run`.
"""

from cl_bench.api.loading import Run, load
from cl_bench.api.making import run
from cl_bench.api.tables import compare, runs

__all__ = ["Run", "compare", "load", "run", "runs"]
