"""Wan 2.1 with VACE: clips from text, references, controls and parts of other clips."""
