"""Prepared sets of published systems, straight from their folders, as trial sources."""
