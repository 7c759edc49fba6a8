"""Experiments that are no single run: a table over a sweep, or a measurement on one network.

`page` is what a study leaves (page.md, table.csv, figure.png), `sweeps` and `orders` collect
finished runs, the others measure.
"""
