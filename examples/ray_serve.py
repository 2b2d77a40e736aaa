"""The server in replicas of Ray Serve, started from Python and asked over HTTP.

    python examples/ray_serve.py --backbone bert-base-uncased --prompts prompts

Every folder of `prompts` with a saved prompt is a task of its name. It ends when it has asked each
of them once. Tasks that come and go want `serve deploy` and examples/ray_serve.yaml: deployed from
Python again, Ray starts all replicas anew.
"""

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

from ray import serve

from ptv2.assets import saved_prompts
from ptv2.serving.ray_app import PTV2, Arguments


def ask(url: str, text: str) -> Any:
    """What the server answers."""
    with urllib.request.urlopen(url, json.dumps({"inputs": text}).encode()) as answer:
        return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", required=True, help="name of the encoder, or its full path")
    parser.add_argument("--prompts", required=True, type=Path, help="folder of saved prompts")
    parser.add_argument("--text", default="play some jazz by miles davis", help="to be read")
    parser.add_argument("--replicas", type=int, default=2, help="each with an encoder")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a replica")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    prompts = args.prompts.resolve()
    tasks = {name: name for name in saved_prompts(prompts)}  # name: folder
    deployment = PTV2.options(
        num_replicas=args.replicas,
        ray_actor_options={"num_gpus": args.gpus},
        user_config={"tasks": tasks},
    )
    serve.start(http_options={"port": args.port})
    try:
        handle = serve.run(deployment.bind(Arguments(backbone=args.backbone, prompts=prompts)))
        print(f"the replicas serve {handle.broadcast('tasks').results()}")
        for name in tasks:
            print(f"{name}: {ask(f'http://127.0.0.1:{args.port}/models/{name}', args.text)}")
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
