"""One run, from its checked config to its record.

Start with `experiment`, the training loop that is the same for every method. `job` decides whether
a run is made or shown, `execution` builds it and writes its record (and `study` makes a study),
`session` holds what the loop works with, and `host` writes its rows and checkpoints. `checkpoint`
and `resume` let it continue where it was stopped.
"""
