"""cl-bench run | list | tune | report: the four commands of this package under one name.

    cl-bench run     method=er dataset=pmnist    make a run, or with -m a sweep of runs
    cl-bench list    [group ...]                 list the options of each group
    cl-bench tune    'grid=<key>=<a>,<b>' ...    search hyper-parameters on held-out training images
    cl-bench report  [folder] [--by KEY ...]     tables and a page of the finished runs in a folder

`cl-bench <command> --help` explains a command; `python -m cl_bench.<command>` does the same as
`cl-bench <command>`. To complete the options of a run in bash: eval "$(cl-bench -sc install=bash)"
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

COMMANDS = {
    "run": "cl_bench.run",
    "list": "cl_bench.list",
    "tune": "cl_bench.tune",
    "report": "cl_bench.report.__main__",
}
COMPLETION = ("-sc", "--shell-completion")


def main() -> None:
    """Call the command that is the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
    elif name in COMPLETION:
        line = os.environ.get("COMP_LINE", "")  # the line to complete, as Hydra expects it
        os.environ["COMP_LINE"] = line.replace(" run ", " ", 1)
        import_module("cl_bench.run").cli()
    elif name in COMMANDS:
        sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
        import_module(COMMANDS[name]).cli()
    else:
        known = ", ".join(COMMANDS)
        print(f"error: {name}: no such command; there are {known} (--help)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
