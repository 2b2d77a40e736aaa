"""What a server does with more than it can do: `ptv2 serve` under several times its capacity.

    python benchmarks/bench_overload.py --data DATA --output overload.json

Starts `ptv2 serve` with MiniLM and tasks of random weights, measures how many requests it answers
in a second when 32 clients ask one after the other, and then sends it `--times` as many, at random
moments and whether or not earlier ones are answered. Reports what was answered, how fast the rest
was refused, and the server's memory. `DATA/sst2/dev.jsonl` has the texts; without --data a few
examples are sent. Goodput is what was answered in a second, from the first request to the last
answer, as a share of the capacity before and after. Client and server share the machine.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import torch
from measure import provenance

from ptv2 import PromptConfig, PromptModel
from ptv2.demo import encoder_directory
from ptv2.storage import write_json

TASKS = 8
CLIENTS = 32
IDLE_SECONDS = 3
"""After which a connection is not used again: the server closes it soon."""
EXAMPLES = ["a fine film", "the plot is thin and the actors are bored , but it ends well"]


class Client:
    """A connection that asks one thing at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def ask(self, body: bytes, task: int) -> int:
        """The status of a request."""
        if self._streams is None or time.monotonic() - self._used > IDLE_SECONDS:
            await self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = (
            f"POST /models/task{task} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in answer.splitlines()[1:] if line)
        await reader.readexactly(int(fields[b"content-length"]))
        self._used = time.monotonic()
        return int(answer.split(b" ", 2)[1])

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


Draw = Callable[[], tuple[bytes, int]]


async def capacity(port: int, draw: Draw, seconds: float) -> float:
    """Answers in a second for `CLIENTS` that always ask."""
    done = 0
    end = time.monotonic() + seconds

    async def always() -> None:
        nonlocal done
        client = Client(port)
        while time.monotonic() < end:
            status = await client.ask(*draw())
            done += status == 200 and time.monotonic() < end
        await client.close()

    await asyncio.gather(*(always() for _ in range(CLIENTS)))
    return done / seconds


async def overload(
    port: int, draw: Draw, rate: float, seconds: float
) -> list[tuple[int, float, float]]:
    """Status, seconds since it was sent, and time of the end of every request.

    They are sent at random moments; where the client itself is late, they are sent later.
    """
    idle: list[Client] = []
    found: list[tuple[int, float, float]] = []
    begun = time.monotonic()

    async def one() -> None:
        client, sent = idle.pop() if idle else Client(port), time.monotonic()
        status = await client.ask(*draw())
        now = time.monotonic()
        found.append((status, now - sent, now - begun))
        idle.append(client)

    asked, due, moments = [], begun, random.Random(2)
    while (due := due + moments.expovariate(rate)) < begun + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asked.append(asyncio.create_task(one()))
    await asyncio.gather(*asked)
    await asyncio.gather(*(client.close() for client in idle))
    return found


@asynccontextmanager
async def serving(
    folder: Path, waiting: int, batch_tokens: int | None, threads: int
) -> AsyncIterator[tuple[int, Any]]:
    """A server's port and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ptv2", "serve", "--backbone", str(encoder_directory())]
    command += ["--prompts", str(folder), "--port", str(port), "--max-waiting", str(waiting)]
    if batch_tokens is not None:
        command += ["--batch-tokens", str(batch_tokens)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, env=environment)
    try:
        while True:
            client = Client(port)
            try:
                await client.ask(b"{}", 0)
                await client.close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit("the server has ended") from None
                await asyncio.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def bench(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    texts = EXAMPLES
    if args.data:
        lines = (args.data / "sst2" / "dev.jsonl").read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
    chosen = random.Random(1)

    def draw() -> tuple[bytes, int]:
        inputs = chosen.choices(texts, k=args.texts)
        return json.dumps({"inputs": inputs}).encode(), chosen.randrange(TASKS)

    async with serving(folder, args.waiting, args.batch_tokens, args.threads) as (port, process):
        await overload(port, draw, 100, args.seconds)  # warm
        able, found, busy, memory = [], [], 0.0, [process.memory_info().rss]
        for _ in range(args.rounds):
            able.append(await capacity(port, draw, args.seconds))
            print(f"capacity: {able[-1]:.1f} answers a second", flush=True)
            found.append(await overload(port, draw, args.times * able[-1], args.seconds))
            busy += max(end for _, _, end in found[-1])
            memory.append(process.memory_info().rss)
        able.append(await capacity(port, draw, args.seconds))
    everything = [x for part in found for x in part]
    answered = sum(status == 200 for status, _, _ in everything)
    refused = sorted(seconds for status, seconds, _ in everything if status == 429)
    return {
        "capacity": able,
        "sent_per_second": len(everything) / args.seconds / args.rounds,
        "goodput": answered / busy / mean(able),
        "statuses": Counter(str(status) for status, _, _ in everything),
        "refused_ms": {q: 1e3 * quantile(refused, q) for q in (0.5, 0.99)},
        "memory_mb": [round(x / 2**20, 1) for x in memory],
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--times", type=float, default=5, help="the capacity")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=8, help="of a request")
    parser.add_argument("--waiting", type=int, default=256, help="the server's --max-waiting")
    parser.add_argument("--batch-tokens", type=int, help="the server's; None: its default")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    model = PromptModel.from_pretrained(encoder_directory())
    with tempfile.TemporaryDirectory() as name:
        for place in range(TASKS):
            task = f"task{place}"
            model.add_task(task, PromptConfig("sequence-classification", ("a", "b"), 20))
            model.save_task(task, Path(name) / task)
        result = asyncio.run(bench(args, Path(name)))
    settings = {key: x for key, x in vars(args).items() if key not in ("data", "output")}
    write_json(args.output, {**provenance(torch.device("cpu")), **settings, **result})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
