"""`ptv2 serve`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..assets import saved_prompts
from ..memory import parse_bytes
from ..serving import Limits, Service
from ..serving.backbone import load_backbone
from .options import Device, MaxLength, chosen_device, option, reports_errors

KEY, ADMIN_KEY = "PTV2_KEY", "PTV2_ADMIN_KEY"


@reports_errors
def serve(
    backbone: Annotated[str, option("Directory or name of the encoder.")],
    prompts: Annotated[Path, option("Directory with a saved prompt in each of its folders.")],
    host: Annotated[str, option("Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option("Port to listen on.")] = 8000,
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Annotated[
        str | None, option("fp32, bf16 or fp16, of the encoder; bf16 on a GPU, else fp32.")
    ] = None,
    compile: Annotated[
        bool, option("Compile the encoder first, which takes a minute.", "--compile")
    ] = False,
    batch_tokens: Annotated[
        int | None,
        option("Tokens of a batch at most; 16384 on a GPU, else 2048 or the longest input."),
    ] = None,
    max_waiting: Annotated[
        int, option("Sequences that wait at most; more are refused.")
    ] = Limits.waiting,
    prompt_memory: Annotated[
        str, option("Memory for prompts on the device; the others wait in the host's.")
    ] = "256MB",
    patience: Annotated[float, option("Seconds that a request may wait for a batch.")] = 60,
    drain_seconds: Annotated[
        float, option("After SIGTERM, how long requests are taken while /health says 503.")
    ] = 0,
    json_logs: Annotated[
        bool, option("Log an object a line, requests among them.", "--json-logs")
    ] = False,
) -> None:
    """Serve all prompts of a directory, by the names of its folders, from one encoder.

    Clients show the key in the variable PTV2_KEY, if it is set. With PTV2_ADMIN_KEY tasks are
    loaded and unloaded under /admin.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"port: expected a number from 0 to 65535, got {port}")
    run = _server()
    names = saved_prompts(prompts)
    model = load_backbone(backbone, chosen_device(device), dtype)
    service = Service(
        model,
        budget=parse_bytes(prompt_memory, "prompt_memory"),
        limits=Limits(tokens=batch_tokens, waiting=max_waiting),
        max_length=max_length,
        patience=patience,
        compile=compile,
    )
    for name in names:
        service.bank.load(prompts / name, name)
    typer.echo(f"{len(names)} tasks on http://{host}:{port}: {', '.join(names)}")
    run(
        service,
        host=host,
        port=port,
        prompts=prompts,
        key=os.environ.get(KEY),
        admin_key=os.environ.get(ADMIN_KEY),
        drain=drain_seconds,
        json_logs=json_logs,
    )


def _server() -> Callable[..., None]:
    try:
        from ..serving.server import run
    except ImportError as error:
        raise ImportError(f"serve needs {error.name}: pip install 'ptv2[serve]'") from None
    return run
