"""Measurements in addition to the accuracy while a run trains: neighbours, the largest eigenvalue.

A probe draws nothing from a run's generators and changes nothing: a run with a probe and one
without it give the same numbers. With `every` = n a probe measures at every n-th step of a task,
and with None once after each task.
"""
