"""GGUF files: reading them by memory map, telling what they hold, numbers in and out of blocks."""
