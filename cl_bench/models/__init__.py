"""Networks, and the steps that prepare them for training.

A model has `features` and a linear `head` with an output for each class. `prepare` loads
pre-trained weights (`pretrained`), folds batch norm (`fold`) and linearises (`linearized`).
`layers` holds what all networks share. Start with `mlp`.
"""
