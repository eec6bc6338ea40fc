"""Reading checkpoints: configuration files and tensors from a folder into modules, strictly."""
