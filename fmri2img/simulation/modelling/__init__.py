"""Training the simulation's own small models, from its own pictures and captions, in one resumable command.

CLIP, an autoencoder, diffusion models conditioned on text and on image embeddings, and a ControlNet: the classes of
the large ones, so that everything that makes pictures can be run and judged on a laptop. `training` is the way in.
"""
