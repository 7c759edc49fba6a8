"""What methods are written with: the data types, and a network as a function of one vector.

Start with `types` (Batch, Task, Stream), then `flat` (all parameters as one vector) and `learner`
(logits, loss, gradient and step on that vector). `network` is the part of the learner that computes
logits, and `heads` says which classes compete. `gradient` computes gradients by autograd,
`mlp_gradient` and `conv_gradient` without it, and `gradient_matrix` those of several losses at
once. `inner_loop` is plain SGD within one step of a method, `criteria` holds the losses, `buffer`
the memories of replay methods, `optim` the optimizer SGD, `runtime` the device and the random
generators, `state` what a checkpoint keeps.
"""
