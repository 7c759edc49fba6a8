"""What methods are written with: the data types, and a network as a function of one vector.

Start with `types` (Batch, Task, Stream), then `flat` (all parameters as one vector) and `learner`
(logits, loss, gradient and step on that vector). `gradient` and `mlp_gradient` are the two ways to
a gradient, `inner_loop` is plain SGD within one step of a method, `criteria` are the losses,
`buffer` the memories, `optim` the SGD, `runtime` the device and its generators.
"""
