"""Curvature matrices of a task: estimated, multiplied with vectors, merged, used as a penalty.

Start with `base` (what a curvature can do), then `diagonal`. `kfac` estimates Kronecker-factored
blocks (`kronecker`, put together by `blocks`); `dense`, `hessian` and `layer_hessian` are exact;
`capture` records the inputs and output gradients of layers. `penalty` is the quadratic penalty that
a method adds to its loss, with `merging` and `penalty_steps`.
"""
