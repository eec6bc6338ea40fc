"""One module for each command of the `denoised` program."""
