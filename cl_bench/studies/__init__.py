"""Measurements on a network itself, which are no single run: `experiment=hessian_ratio` and others.

prior_vs_distillation.py, taylor_error.py and hessian_ratio.py have a function `study` that returns
a `results.page.Page`: the first trains a network of the benchmark, the others the small models of
models.py. emcl_readings.py is a method, for experiment=emcl/readings. The page of a sweep of runs
is made in cl_bench/report/sweep_pages.py.
"""
