"""What the machine can do at best: bytes copied and matrix FLOPs per second.

python benchmarks/hardware.py --output results/hardware.json
"""

import torch
from measure import argument_parser, provenance, time_interleaved, write_json


def measure(device: torch.device, size: int, rounds: int) -> dict[str, float]:
    """A copy counts its bytes twice, read and written; a product of size^2 matrices 2 size^3."""
    source = torch.zeros(size * size * 16, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = time_interleaved(
        {"copy": lambda: target.copy_(source), "product": lambda: left @ right}, device, rounds
    )
    return {
        "copy bytes per second": 2 * source.numel() / seconds["copy"],
        "matrix FLOP per second": 2 * size**3 / seconds["product"],
        "matrix size": size,
    }


def main() -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    found = measure(args.device, 256 if args.toy else 8192, 3 if args.toy else 20)
    write_json(args.output, {"provenance": provenance(args.device), "hardware": found})
    for name, value in found.items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
