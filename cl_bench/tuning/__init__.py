"""The search for hyper-parameters behind `python -m cl_bench.tune`.

`search` is what was asked for (axes and points), `trials` runs its points as ordinary runs.
"""
