"""The generator: turns latent points into instructions with an open language model."""
