"""Finished runs compared: `python -m cl_bench.report outputs/`, and the pages of sweeps.

Read runs.py (records become runs), quantities.py (the numbers of a run), statistics.py and rows.py
(runs become rows), then tables.py and html_page.py. sweep_pages.py makes the page of a sweep from
the same runs and quantities. For --save read results_table.py, commands.py and save.py.
"""
