"""A deployment whose engine can be made to die."""

from typing import Any

from ray import serve

from ptv2.serving.ray_app import PTV2, Arguments, Replica


class Mortal(Replica):
    def die(self) -> None:
        """End the engine's thread with the next request."""
        self._service.batcher._run = _exits


def _exits(*_: Any) -> Any:
    raise SystemExit("injected")


def build(arguments: Arguments) -> serve.Application:
    config = {"tasks": {"mood": "mood-1"}}
    return PTV2.options(serve.ingress()(Mortal), user_config=config).bind(arguments)
