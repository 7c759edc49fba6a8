"""Curvature matrices of a task: estimated, multiplied with vectors, merged, used as a penalty.

Start with `base` (what a curvature can do), then `diagonal`. `kfac` estimates Kronecker-factored
blocks (`kronecker`, summed by `sums`, put together by `blocks`); `dense` builds the whole matrix;
`hessian` and `layer_hessian` use the Hessian itself, by `products`. `capture` records the inputs
and output gradients of layers, of which `elementwise` makes diagonals. `penalty` is the quadratic
penalty that a method adds to its loss, with `merging` and `penalty_steps`.
"""
