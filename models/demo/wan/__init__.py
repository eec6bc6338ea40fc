"""The video demo: scripts that train it, and the judge of its clips."""
