"""python -m cl_bench.report outputs/: the finished runs below a folder, compared.

Read rows.py (records to rows), statistics.py, published.py, tables.py, then page.py.
--save: results_table.py (the rows of results/<table>.csv), commands.py, save.py.
"""
