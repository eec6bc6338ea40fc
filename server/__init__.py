"""The HTTP side: routes, problems, event streams and metrics over the job layer.

A request becomes a `NewJob` in Redis and nothing else; results are read back. Imports no torch.
"""
