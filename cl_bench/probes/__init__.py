"""Measurements beside the accuracy while a run trains: neighbours, the largest eigenvalue.

A probe draws nothing from a run's generators and changes nothing: a run with a probe and one
without it give the same numbers. A probe with `every` measures each so many steps of a task, and
one whose `every` is None measures once after each task.
"""
