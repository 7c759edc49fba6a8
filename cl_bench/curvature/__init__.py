"""Curvature matrices of a task: estimated, multiplied with vectors, merged, used as a penalty.

Start with `base` (what a curvature can do), then `diagonal`; `kfac` and `kronecker` are the
Kronecker-factored ones, `dense` and `hessian` the exact ones, `capture` the layers' inputs and
output gradients, `penalty` the quadratic penalty that a method adds to its loss.
"""
