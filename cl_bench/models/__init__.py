"""Networks, and what is done to them before they are trained.

A model has `features` and a linear `head` for all classes. `prepare` loads pre-trained weights,
folds batch norm (`fold`) and linearises (`linearized`); `layers` is what all networks share.
"""
