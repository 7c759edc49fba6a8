"""What methods are written with: the data types, and a network as a function of one vector.

Start with `types` (Batch, Task, Stream), then `flat` (all parameters as one vector) and `learner`
(logits, loss, gradient and step on that vector). `network` is the part of the learner that computes
logits, and `heads` says which classes compete. `gradient` computes gradients by autograd, `direct`
with `mlp_gradient` and `conv_gradient` without it, and `gradient_matrix` those of several losses at
once. `inner_loop` is plain SGD within one step of a method, `criteria` holds the losses, `buffer`
the memories of replay methods, `optim` the optimizer SGD, `runtime` the machine of a run and its
random generators, `devices` the choice of a GPU, `parallel` several processes that train one
network, `state` what a checkpoint keeps.
"""
