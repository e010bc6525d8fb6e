"""Families whose video model is a diffusion transformer with an autoencoder that compresses time: Wan, CogVideoX."""
