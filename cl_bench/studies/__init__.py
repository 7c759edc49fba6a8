"""Measurements on a network itself, which are no single run: `experiment=hessian_ratio` and others.

Each module has a function `study` that returns a `results.page.Page`. prior_vs_distillation.py
trains a network of the benchmark, taylor_error.py and hessian_ratio.py the small models of
models.py. The page of a sweep of runs is made in cl_bench/report/sweep_pages.py.
"""
