"""`ptv2 serve`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..assets import saved_prompts
from ..memory import parse_bytes
from ..model import PromptModel
from ..serving import Limits, Service
from .options import MaxLength, option, reports_errors

KEY, ADMIN_KEY = "PTV2_KEY", "PTV2_ADMIN_KEY"


@reports_errors
def serve(
    backbone: Annotated[str, option("Directory or name of the encoder.")],
    prompts: Annotated[Path, option("Directory with a saved prompt in each of its folders.")],
    host: Annotated[str, option("Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option("Port to listen on.")] = 8000,
    max_length: MaxLength = None,
    batch_tokens: Annotated[int, option("Tokens of a batch at most.")] = Limits.tokens,
    max_waiting: Annotated[
        int, option("Sequences that wait at most; more are refused.")
    ] = Limits.waiting,
    prompt_memory: Annotated[
        str, option("Memory for prompts on the device; the others wait in the host's.")
    ] = "256MB",
) -> None:
    """Serve all prompts of a directory, by the names of its folders, from one encoder.

    Clients show the key in the variable PTV2_KEY, if it is set. With PTV2_ADMIN_KEY tasks are
    loaded and unloaded under /admin.
    """
    app, run = _application()
    names = saved_prompts(prompts)
    model = PromptModel.from_pretrained(backbone)
    service = Service(
        model,
        budget=parse_bytes(prompt_memory),
        limits=Limits(tokens=batch_tokens, waiting=max_waiting),
        max_length=max_length,
    )
    for name in names:
        service.bank.load(prompts / name, name)
    typer.echo(f"{len(names)} tasks on http://{host}:{port}: {', '.join(names)}")
    keys = {"key": os.environ.get(KEY), "admin_key": os.environ.get(ADMIN_KEY)}
    run(app(service, prompts=prompts, **keys), host=host, port=port, log_level="warning")


def _application() -> tuple[Any, Any]:
    try:
        import uvicorn

        from ..serving.app import create_app
    except ImportError as error:
        raise ImportError(f"serve needs {error.name}: pip install 'ptv2[serve]'") from None
    return create_app, uvicorn.run
