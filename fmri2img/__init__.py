"""fmri2img trains decoders that turn a person's brain activity (fMRI) back into the picture they saw."""

__version__ = "0.1.0"
