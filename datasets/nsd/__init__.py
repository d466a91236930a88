"""The NSD release as published, as a trial source."""
