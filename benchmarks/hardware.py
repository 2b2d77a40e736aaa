"""What the machine can do at best: bytes copied and matrix FLOPs per second.

    python benchmarks/hardware.py --output results/hardware.json

On a CPU the second is what its cores do of vector multiply-adds on registers, in fp32: a small
program that the compiler at hand builds for this processor.
"""

import subprocess
import tempfile
from pathlib import Path

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


MULTIPLY_ADDS = """
#include <chrono>
#include <cstdio>
#include <omp.h>
#if defined(__AVX512F__)
typedef float Vector __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float Vector __attribute__((vector_size(32)));
#else
typedef float Vector __attribute__((vector_size(16)));
#endif
constexpr long kRounds = 100000000, kChains = 10;
int main(int, char**) {
  const auto begin = std::chrono::steady_clock::now();
  float sum = 0;
#pragma omp parallel reduction(+ : sum)
  {
    Vector x = {}, y = {}, chains[kChains] = {};
    x += 1.0000001f;
    y += 1e-9f;
    for (long j = 0; j < kChains; ++j) chains[j] += float(j);  // or they are all one
    for (long i = 0; i < kRounds; ++i)
#pragma GCC unroll 10
      for (long j = 0; j < kChains; ++j) chains[j] = chains[j] * x + y;
    for (auto& chain : chains) sum += chain[0];
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const double lanes = sizeof(Vector) / sizeof(float), threads = omp_get_max_threads();
  std::printf("%g %g", 2 * kRounds * kChains * lanes * threads / seconds.count(), sum);
}
"""


def multiply_adds() -> float:
    """fp32 FLOPs per second of all cores, on registers."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "multiply_adds.cpp"), Path(folder, "multiply_adds")
        source.write_text(MULTIPLY_ADDS)
        flags = ("-O2", "-march=native", "-fopenmp", "-ffp-contract=fast")
        subprocess.run(("c++", *flags, source, "-o", program), check=True)
        return float(subprocess.check_output(program, text=True).split()[0])


def main() -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    on_cpu = args.device.type == "cpu"
    size = 256 if args.toy else 2048 if on_cpu else 8192
    found = measure(args.device, size, 3 if args.toy else 20)
    if on_cpu and not args.toy:
        found["product of large matrices, FLOP per second"] = found["matrix FLOP per second"]
        found["matrix FLOP per second"] = multiply_adds()
    write_json(args.output, {"provenance": provenance(args.device), "hardware": found})
    for name, value in found.items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
