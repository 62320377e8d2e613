"""One file for each optimiser: a function `optimiser(groups, *, ...)` that gives a `torch.optim.Optimizer`.

`groups` are PyTorch's parameter groups: backbone, head and loss, each as {"params": [...]}; a group may be empty. The
keyword arguments, with their annotated ranges, are the keys in params.yaml. The learning rates come from the recipe and
are set before each step. A step may not wait for a GPU, so an implementation is chosen that counts its steps on the
host or not at all. Everything that a step changes has to be in `state_dict`, because a resumed run gets it from there.
"""
