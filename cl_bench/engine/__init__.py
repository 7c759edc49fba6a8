"""One run: the protocol, what surrounds it, and how it goes on after a stop.

Start with `experiment`, the training loop that is the same for every method. `execution` builds a
run from its config and writes its record; `session` holds its rows, checkpoints and progress bar;
`checkpoint` and `resume` let it continue where it stopped.
"""
