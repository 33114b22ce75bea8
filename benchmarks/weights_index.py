"""Write the graphs of all packaged weights and weights/index.json anew.

    python -m benchmarks.weights_index --default NAME

The index repeats each file's card and hash, and names the committed measurements. To be run after
the weights in `weights/` have changed, and after a benchmark was run with them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from tue_cli.train.export import write_graph
from tue_cli.weights import read

ROOT = Path(__file__).parent.parent
LICENCE = (
    "MIT for the file; trained on research data, see the card's data: CIFAR-10 and Tiny ImageNet "
    "pictures are for research use"
)


def main() -> None:
    """Export and hash every file, repeat its card, and point to what was measured with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--default", required=True)
    default = parser.parse_args().default
    folder = ROOT / "weights"
    listed = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights = read(path, name=path.stem)
        graph = path.with_suffix(".onnx")
        # The generator must run to its end: it proves the graph before it writes it.
        list(write_graph(weights, graph, beside=True))
        measured = [
            result.name
            for result in sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))
            if weights.sha256 in result.read_text(encoding="utf-8")
        ]
        listed[path.stem] = {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "graph": {
                "file": graph.name,
                "sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
            },
            "licence": LICENCE,
            "measured": measured,
            "card": json.loads(weights.card.to_json()),
        }
    if default not in listed:
        raise SystemExit(f"There are no weights {default!r} in {folder}.")
    text = json.dumps({"default": default, "weights": listed}, indent=1, sort_keys=True)
    (folder / "index.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
