"""Generators turn predicted features into pictures."""
