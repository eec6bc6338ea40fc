"""The Sana family: linear diffusion transformer, autoencoder, text encoder, and their pipeline."""
