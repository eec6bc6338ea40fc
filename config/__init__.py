"""The ground every other package stands on: settings and model descriptions.

Imports nothing of ours.
"""
