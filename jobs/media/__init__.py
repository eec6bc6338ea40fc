"""Pictures and clips that clients send: what they are, whether they decode, and their frames.

Files are hostile until proved otherwise. The API has every upload decoded once by a helper process
(`inspector`, `probe`); workers decode the accepted ones into arrays (`decode`). Knows no torch, no
HTTP and no Redis.
"""
