"""The search for hyper-parameters behind `python -m cl_bench.tune`.

Start with `command.tune`, the whole search. `search` parses what is asked for and lists the points,
`axis` is one key with its values, `trials` runs the points as ordinary runs, and `optuna_search`
lets Optuna choose them.
"""
