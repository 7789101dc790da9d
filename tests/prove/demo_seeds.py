"""The demo over several seeds: `python -m tests.prove.demo_seeds OUT [SEEDS]`, run by `make prove`.

Writes OUT/seeds.json and prints, as Markdown, the mean and the spread of each accuracy over the
seeds, and those of the second run's gain over the first of the same seed.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from hnpretrain.demo.path import RUNS, run
from hnpretrain.demo.report import SCORES
from hnpretrain.worlds.pairs import CONCEPTS


def main(output: Path, seeds: int) -> None:
    results = []
    for seed in range(seeds):
        folder = output / f"seed{seed}"
        run(folder, seed)  # goes on where it was, and refuses the results of other settings
        results.append(json.loads((folder / "results.json").read_text()))
    (output / "seeds.json").write_text(json.dumps(results, indent=2) + "\n")

    titles = [
        f"{score}: {title}" for score in SCORES for title in (*(r.title for r in RUNS), "gain")
    ]
    print(f"| concept | {' | '.join(titles)} |")
    print(f"|{'---|' * (len(titles) + 1)}")
    for concept in (*CONCEPTS, "all"):
        cells = []
        for score in SCORES:
            first, second = (
                [result["accuracy"][each.name][score][concept] for result in results]
                for each in RUNS
            )
            gains = [b - a for a, b in zip(first, second, strict=True)]
            cells += [_spread(first), _spread(second), _spread(gains, sign="+")]
        print(f"| {concept} | {' | '.join(cells)} |")


def _spread(values: list[float], sign: str = "") -> str:
    """Mean and sample standard deviation over the seeds, in percent."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):{sign}.1f} +- {100 * spread:.1f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
