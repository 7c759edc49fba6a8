"""Tests for methods, also for those outside this package: small parts, and the contract.

Start reading at `contract.check_method`, which trains a method on a toy stream and asserts what
every method must hold. `small` makes the parts of a run that takes a fraction of a second: stream,
network, learner, method. `small_run` is such a run, stopped and continued at will. Imports from all
rooms but `report`, `tuning` and `api`; nothing imports from it.
"""

from cl_bench.testing.contract import check_method as check_method
from cl_bench.testing.small import batch as batch
from cl_bench.testing.small import blobs as blobs
from cl_bench.testing.small import learner as learner
from cl_bench.testing.small import machine as machine
from cl_bench.testing.small import method_for as method_for
from cl_bench.testing.small import mlp as mlp
