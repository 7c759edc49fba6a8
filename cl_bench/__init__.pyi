from cl_bench.api import Run, compare, load, run, runs
from cl_bench.base.exceptions import UserError

__version__: str
API: tuple[str, ...]
__all__ = ["Run", "UserError", "compare", "load", "run", "runs"]
