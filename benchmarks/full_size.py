"""Full-size models without their weights: how large they are, what a round of them takes, and what the estimate says.

    python benchmarks/full_size.py                         # counted, on any machine: no memory, no computing
    python benchmarks/full_size.py --measure [--compile]   # real rounds with random weights; made for a CUDA GPU
    python benchmarks/full_size.py --measure --models sd15 --pixels 512    # on a CPU

Counted: the networks are built without storage, and every tensor that a round's calls would make is added up while it
lives (sampling: one call of the network for a batch, without gradient; decoding, and decoding with the gradient of a reward;
learning: forward and backward of a micro-batch through the policy's mean). That is what the tensors take; an allocator adds
its own rounding and caches.

Measured: the trainer's own rounds; images a second by phase; peak memory as CUDA reports it. Without a GPU two rounds run on the
CPU in fp32, two steps and one image at a time, which takes minutes, and the peak is the rise of the resident memory; the large
text encoders are then cut to two layers, as they only encode the prompts once, and the file of results keeps the other runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS
from benchmarks.sizes.counting import count, estimate_shipped
from benchmarks.sizes.measuring import measure_full_size
from benchmarks.sizes.shapes import SHAPES


def main() -> None:
    """Count, or measure, and write the figures."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    options.add_argument("--measure", action="store_true", help="real rounds, on a CUDA GPU if there is one")
    options.add_argument("--compile", action="store_true", help="with torch.compile")
    options.add_argument("--pixels", type=int, help="height and width of the measured images")
    options.add_argument("--out", type=Path, default=RESULTS / "full_size.json")
    arguments = options.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    result: dict[str, Any] = {}
    if (arguments.measure or arguments.models != list(SHAPES)) and arguments.out.exists():
        result = results.read(arguments.out)
    result |= {"torch": torch.__version__, "diffusers": diffusers.__version__}
    for name in arguments.models:
        shape = SHAPES[name]
        key = name
        if arguments.measure:
            found: Any = measure_full_size(shape, compiled=arguments.compile, pixels=arguments.pixels)
            key = f"{name} at {found['pixels']} px"
        else:
            found = [
                count(shape, checkpointing, dtype)
                for dtype in (torch.bfloat16, torch.float32)
                for checkpointing in (False, True)
            ]
        result[key] = found
        print(key, json.dumps(found, indent=2), flush=True)
    if not arguments.measure:
        result["shipped_configurations_gib"] = estimate_shipped()
        print(json.dumps(result["shipped_configurations_gib"], indent=2))
    results.write(arguments.out, result)


if __name__ == "__main__":
    main()
