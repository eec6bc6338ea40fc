"""The job layer: what a job is, how it is queued, claimed, reported on, finished and reaped.

Redis holds the truth in RQ's data model; every change of state is one Lua script. Knows no torch
and no HTTP server.
"""
