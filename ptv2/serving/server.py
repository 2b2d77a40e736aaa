"""uvicorn around the application: an end that load balancers see coming, and logs as JSON."""

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from .app import create_app
from .service import Service

GRACE_SECONDS = 60
"""That answers may take after SIGTERM; a client that reads none of it would last for ever."""
SWITCH_SECONDS = 1e-4
"""That requests may keep the interpreter from the engine, which asks for it at every operator."""
CONNECTIONS = 8192
"""At once; more get a 503, without a look at what they want."""


class Server(uvicorn.Server):
    """uvicorn that is not ready for some seconds before it takes no more connections.

    Args:
        drain: seconds between the signal and the end of listening; requests are still answered.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain = drain
        self._timer: threading.Timer | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends the drain."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._drain or self._service.draining:
            return super().handle_exit(sig, frame)
        self._service.draining = True
        self._timer = threading.Timer(self._drain, super().handle_exit, (sig, frame))
        self._timer.daemon = True
        self._timer.start()


def run(
    service: Service,
    *,
    host: str,
    port: int,
    prompts: Path | None = None,
    key: str | None = None,
    admin_key: str | None = None,
    drain: float = 0,
    json_logs: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        prompts, key, admin_key: as `create_app` has them.
        drain: as `Server` has it.
        json_logs: whether logs are an object a line, requests among them.

    Raises:
        ValueError: a key is none that a client could show, or the time to drain is negative.
    """
    if not drain >= 0:
        raise ValueError(f"drain: expected no negative number of seconds, got {drain}")
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(service, prompts=prompts, key=key, admin_key=admin_key)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=_json_logs() if json_logs else uvicorn.config.LOGGING_CONFIG,
        log_level=None if json_logs else "warning",
        access_log=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    Server(config, service, drain).run()


def _json_logs() -> dict[str, Any]:
    fields = {"asctime": "time", "levelname": "level", "name": "logger"}
    formatter = {
        "()": "pythonjsonlogger.json.JsonFormatter",
        "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
        "rename_fields": fields,
    }
    handler = {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": formatter},
        "handlers": {"json": handler},
        "root": {"handlers": ["json"], "level": "INFO"},
    }
