"""Decoders: responses in, predicted features out."""
