"""python -m cl_bench.tune method=ewc dataset=pmnist 'grid=method.strength=1,5 optimizer.lr=0.1,1'

Search hyper-parameters on held-out training images (evaluation.split=val), never on test images.
Each point of the grid is run with each seed, by default on the first three tasks. The point with
the highest mean ACC is written, with the results of all points as evidence, to
<tuned_dir>/<dataset>/<scenario>/<method>.yaml; `cl_bench.run ... tuned=true` uses its values.

    grid='<key>=<values> ...'  the keys to search, with their values in Hydra's notation of sweeps:
                               optimizer.lr=0.01,0.1             these values
                               method.replay=range(1,5)          1, 2, 3, 4
                               optimizer.lr=interval(0.1,10)     any number between the two
                               optimizer.lr=tag(log,interval(0.1,10))   on a logarithmic scale
    spaces=<name>              in place of grid: the keys and values of each method in a file of
                               cl_bench/tuned_values/spaces, or in a file of your own: <name>.yaml
    strategy=grid              all combinations of the values; no intervals (the default)
             random            random points, as many as `trials`
             sobol             as many points as `trials`, evenly spread (Sobol's sequence)
             optuna            as many points as `trials`, each proposed by Optuna's TPE sampler
                               from the results before it (pip install -e ".[tune]")
    trials=20                  number of points of random, sobol and optuna
    first=3                    number of tasks that each run trains on
    seeds=0                    seeds of each point, for example 0,1,2
    jobs=1                     number of points that are run at the same time (optuna: 1)

method=er,ewc,derpp searches for one method after the other, each with the same options.
All other arguments are overrides of cl_bench.run. More tasks and seeds (first=20 seeds=0,1,2) take
longer, and say more about the whole stream.

Each run is an ordinary run of cl_bench.run, so the same command continues a search that was
stopped and repeats no finished run. A point at which training diverges is skipped and listed as
diverged; any other failure stops the search. Of points with equal ACC the first one is taken.
"""

from __future__ import annotations

import sys

from cl_bench.config.command import run_command


def main() -> None:
    """Print the help, or run the search that the command line describes."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    from cl_bench.tuning.command import tune  # the help is printed without loading PyTorch

    tune(arguments)


def cli() -> None:
    """The command line of a search."""
    run_command(main, takes_overrides=False)


if __name__ == "__main__":
    cli()
