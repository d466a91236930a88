"""Feature spaces: what frozen extractors make of pictures, once."""
