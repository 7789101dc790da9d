"""Evaluation: benchmarks from local files, scored by a CLIP-style model.

1. `benchmarks.load` reads a benchmark's official files and checks them all before any model runs.
2. `encode.Encoder` turns its images and captions into unit vectors, each distinct one once.
3. `scorers` turns cosine scores into right/wrong, and those into an accuracy with its error.
4. `report` writes the results as JSON and as a table.

`benchmarks.run(benchmarks, encoder)` does 2 and 3, in training too; `hnpretrain eval` does it all.
"""
