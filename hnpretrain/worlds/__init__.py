"""The concept world: rendered scenes with true captions, the data set that needs no download.

A scene is one to three drawn things, each with a color, a size and a place. `scene` draws it from
(seed, split, index), `draw` makes its picture, `captions` tells what is in it, `pairs` changes
exactly one concept of it, and `build` writes all that in the formats that the rest of the project
reads. Nothing here imports torch.
"""
