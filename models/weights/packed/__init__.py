"""Linear layers whose weights stay quantised: packed as in the GGUF file, or 8-bit floats."""
