"""What is watched beside the accuracy while a run trains: neighbours, the largest eigenvalue.

A probe draws nothing from a run's generators and changes nothing: runs with and without are equal.
"""
