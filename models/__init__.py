"""The models: catalogue, weights, samplers and pipelines. Knows no Redis and no HTTP.

Importing this package costs nothing: torch is loaded only by the modules that compute with it, so
that the catalogue can be read by processes that must stay light.
"""
