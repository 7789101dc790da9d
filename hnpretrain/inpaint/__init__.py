"""Pairs of pictures that differ in one thing, made from photos: InpaintCOCO's idea, for any photos.

propose -> generate (and check) -> review, by people -> export. Each step reads what the one before
has left in one folder; see `folder`.
"""
