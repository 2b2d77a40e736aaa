"""The same application on several machines, as a deployment of Ray Serve.

What is served is one list, from names of tasks to folders, which Ray keeps as the deployment's
`user_config`: a change reaches every replica, and a replica that starts later gets it too.

    serve deploy ptv2.serving.ray_app:build backbone=bert-base-uncased prompts=/shared/prompts
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ByteSize, ConfigDict
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from ..assets import saved_prompts
from ..config import check_task_name
from ..model import UnknownTaskError
from .app import create_app
from .backbone import load_backbone
from .engine import BUDGET
from .jobs import Limits, UnavailableError
from .service import Service

KEY = "PTV2_KEY"
DEPLOYMENT = "PTV2"
DASHBOARD = "http://localhost:8265"
_LOCAL_ROUTES = ("/metrics",)
"""What would tell of one replica as if it were of all of them."""


class Arguments(BaseModel):
    """What `build` takes; text as the command line has it becomes numbers.

    Args:
        backbone: directory or name of the encoder, as every machine finds it.
        prompts: directory with a saved prompt in each of its folders, as every machine finds it.
        dtype: fp32, bf16 or fp16, of the encoder; by default bf16 on an accelerator, else fp32.
        max_length: longest input in tokens, if less than the backbone allows.
        batch_tokens: of a batch at most; by default 16,384 on an accelerator, else 2,048 or
            the longest input.
        max_waiting: sequences that wait in a replica at most; more are refused.
        prompt_memory: for prompts on the device of a replica, such as "256MB".
    """

    model_config = ConfigDict(extra="forbid")

    backbone: str
    prompts: Path
    dtype: str | None = None
    max_length: int | None = None
    batch_tokens: int | None = None
    max_waiting: int = Limits.waiting
    prompt_memory: ByteSize = ByteSize(BUDGET)


class Config(BaseModel):
    """The `user_config`: the folder of every task that is served."""

    model_config = ConfigDict(extra="forbid")

    tasks: dict[str, str]


class Replica:
    """One encoder, on the accelerator that Ray gives it or else on the CPU."""

    def __init__(self, arguments: Arguments) -> None:
        device = torch.accelerator.current_accelerator(check_available=True)
        model = load_backbone(arguments.backbone, device or torch.device("cpu"), arguments.dtype)
        self._prompts = arguments.prompts
        self._folders: dict[str, str] = {}
        self._service = Service(
            model,
            budget=arguments.prompt_memory,
            limits=Limits(tokens=arguments.batch_tokens, waiting=arguments.max_waiting),
            max_length=arguments.max_length,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:  # called by Ray, after __init__
        app = create_app(self._service, key=os.environ.get(KEY))
        app.router.routes[:] = [
            route for route in app.routes if getattr(route, "path", None) not in _LOCAL_ROUTES
        ]
        return app

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve what a `user_config` lists: all of it or, with an error, what was served before.

        Raises:
            FileNotFoundError: there is no saved prompt in a folder.
            ValueError: a prompt is corrupt, or is not for the backbone.
        """
        folders = Config.model_validate(config).tasks
        bank = self._service.bank
        changed = [name for name in folders if folders[name] != self._folders.get(name)]
        read = [bank.read(self._place(folders[name]), name) for name in changed]
        for task in read:
            bank.publish(task)
        for name in self._folders.keys() - folders.keys():
            bank.unload(name)
        self._folders = folders

    def check_health(self) -> None:
        """Raise an UnavailableError if nothing is answered any more; Ray replaces the replica."""
        if not self._service.batcher.alive:
            raise UnavailableError("the engine is dead")

    def check(self, folder: str, name: str) -> str:
        """The SHA-256 of a saved prompt that could be served; raises as `reconfigure` does."""
        return self._service.bank.read(self._place(folder), name).sha256

    def tasks(self) -> dict[str, str]:
        """The folder of every task that is served."""
        return self._folders

    def _place(self, folder: str) -> Path:
        check_task_name(folder)
        return self._prompts / folder


PTV2 = serve.deployment(
    name=DEPLOYMENT,
    max_ongoing_requests=256,  # Ray's 5 would be the largest batch
    max_queued_requests=1024,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
    health_check_period_s=2,
    health_check_timeout_s=10,
)(serve.ingress()(Replica))


def build(arguments: Arguments) -> serve.Application:
    """The application for `serve deploy`, with every saved prompt of the directory by its name.

    A `user_config` in the configuration of the deployment takes the place of these.

    Raises:
        FileNotFoundError: there is no saved prompt.
    """
    config = {"tasks": {name: name for name in saved_prompts(arguments.prompts)}}
    return PTV2.options(user_config=config).bind(arguments)


def load(
    name: str,
    folder: str | None = None,
    *,
    application: str = "default",
    dashboard: str = DASHBOARD,
    timeout: float = 120,
) -> None:
    """Serve the prompt in a folder, on all replicas; run it on a machine of the cluster.

    Every replica reads it before anything changes. One administrator at a time.

    Args:
        folder: in the directory of prompts. None: called as the task is.
        application: as `serve deploy` made it.
        dashboard: the address of Ray's dashboard.
        timeout: seconds until all replicas that take requests have it.

    Raises:
        FileNotFoundError: there is no saved prompt in the folder.
        TimeoutError: they have it not; Ray goes on.
        ValueError: the folder is served by this name already, the prompt is corrupt, not for the
            backbone or not the same on all machines, or the application is none that
            `serve deploy` made and that is running.
    """
    folder = name if folder is None else folder
    check_task_name(name)

    def add(tasks: Mapping[str, str]) -> dict[str, str]:
        if tasks.get(name) == folder:
            raise ValueError(
                f"folder: expected another one than {folder!r}, which is {name!r} already; a new "
                "version has a folder of its own"
            )
        handle = serve.get_app_handle(application)
        found = set(handle.broadcast("check", folder, name).results(timeout_s=timeout))
        if len(found) != 1:
            raise ValueError(
                f"folder: expected the same prompt on all machines, got {sorted(found)}"
            )
        return {**tasks, name: folder}

    _change(add, application, dashboard, timeout)


def unload(
    name: str,
    *,
    application: str = "default",
    dashboard: str = DASHBOARD,
    timeout: float = 120,
) -> None:
    """Admit no more requests for a task, on all replicas; the arguments are those of `load`.

    Raises:
        TimeoutError: some replicas still admit them; Ray goes on.
        UnknownTaskError: it is not served.
        ValueError: the application is none that `serve deploy` made and that is running.
    """

    def remove(tasks: Mapping[str, str]) -> dict[str, str]:
        if name not in tasks:
            known = ", ".join(tasks) or "none"
            raise UnknownTaskError(f"task: {name!r} is not served; these are: {known}")
        return {other: folder for other, folder in tasks.items() if other != name}

    _change(remove, application, dashboard, timeout)


def _change(
    edit: Callable[[Mapping[str, str]], dict[str, str]],
    application: str,
    dashboard: str,
    timeout: float,
) -> None:
    """Deploy all applications as they are, with another list of tasks for one of them."""
    client = ServeSubmissionClient(dashboard)
    details = client.get_serve_details()
    configs = {
        name: x["deployed_app_config"]
        for name, x in details["applications"].items()
        if x["deployed_app_config"] is not None
    }
    if application not in configs:
        raise ValueError(
            f"application: expected one that `serve deploy` made, got {application!r}; these are: "
            f"{', '.join(configs) or 'none'}"
        )
    now = details["applications"][application]
    if now["status"] != "RUNNING":
        raise ValueError(
            f"application: expected {application!r} to be RUNNING, got {now['status']}: "
            f"{now['message']}"
        )
    running = now["deployments"][DEPLOYMENT]["deployment_config"]
    tasks = edit(running["user_config"]["tasks"])
    deployments = configs[application].setdefault("deployments", [])
    if DEPLOYMENT not in [x["name"] for x in deployments]:
        deployments.append({"name": DEPLOYMENT})
    for deployment in deployments:
        if deployment["name"] == DEPLOYMENT:
            deployment["user_config"] = {"tasks": tasks}
    client.deploy_applications({"applications": list(configs.values())})
    _wait_for(tasks, application, timeout)


def _wait_for(tasks: Mapping[str, str], application: str, timeout: float) -> None:
    """Return when all replicas that take requests serve a list."""
    end = time.monotonic() + timeout
    handle = serve.get_app_handle(application)
    while time.monotonic() < end:
        try:
            found = handle.broadcast("tasks").results(timeout_s=10)
        except (RayError, RayServeException, TimeoutError):
            found = []  # a replica ends or begins
        running = serve.status().applications[application].status == "RUNNING"
        if running and found and all(x == tasks for x in found):
            return
        time.sleep(0.2)
    raise TimeoutError(f"timeout: not all replicas serve {dict(tasks)} within {timeout} s")
