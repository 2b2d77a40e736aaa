"""What is measured in a process of its own, with its own Python: the process, and who talks to it.

A command is a line of JSON, and so is its answer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers.utils import logging

HERE = Path(__file__).parent
REFUSALS = (ImportError, MemoryError, NotImplementedError)
"""What a command raises that cannot be done here; anything else is a failure of the process."""


class Process:
    """A script that calls `answer_commands`; its first answer waits until it is there.

    Args:
        name: for messages.
        script: in this folder.
        python: of the script's environment.
    """

    def __init__(
        self, name: str, script: str, arguments: tuple[str, ...], python: str, threads: int
    ) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.name = name
        self._process = subprocess.Popen(
            [python, "-W", "ignore::FutureWarning", str(HERE / script), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def call(self, command: str, **arguments: Any) -> Any:
        """The answer to a command.

        Raises:
            NotImplementedError: the script cannot do it; says why.
            RuntimeError: the process has failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([command, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.name}: the process has failed at {command!r}; see above")
        found = json.loads(line)
        if "refused" in found:
            raise NotImplementedError(found["refused"])
        return found["answer"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def answer_commands(commands: Any) -> None:
    """Answer what comes, by the methods of an object, until the other side is gone."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        command, arguments = json.loads(line)
        try:
            found = {"answer": getattr(commands, command)(**arguments)}
        except REFUSALS as error:
            found = {"refused": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers, flush=True)
