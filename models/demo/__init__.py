"""The bundled demo models: their captions and pictures, their judge, their training, the weights.

`sana-demo/` holds the checkpoint that users run; everything beside it is what made it and what
examines it.
"""
