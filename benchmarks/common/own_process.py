"""A function in a process of its own: its peak memory, environment and interpreter are its own.

    python -m benchmarks.common.own_process MODULE:FUNCTION ARGUMENTS.json RESULT.json

Scripts call `in_own_process`, which runs this command.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import silence_libraries
from benchmarks.common.folders import ROOT
from gradwise.atomic import write_json


def in_own_process(
    function: str, *arguments: Any, python: str = sys.executable, environment: dict[str, str] | None = None
) -> Any:
    """Result of a function, called in a new process.

    Args:
        function: such as "benchmarks.grace.million:measure". arguments: anything that JSON can hold.
        python: the interpreter. environment: variables besides the inherited ones.
    """
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as name:
        inputs, result = Path(name) / "arguments.json", Path(name) / "result.json"
        inputs.write_text(json.dumps(arguments))
        command = [python, "-m", "benchmarks.common.own_process", function, str(inputs), str(result)]
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
        subprocess.run(command, check=True, cwd=ROOT, env=variables, stdout=sys.stderr)
        return json.loads(result.read_text())


def main(function: str, arguments: str, result: str) -> None:
    """The new process: call the function and write what it returns."""
    silence_libraries()
    module, _, name = function.partition(":")
    returned = getattr(import_module(module), name)(*json.loads(Path(arguments).read_text()))
    write_json(Path(result), json.loads(json.dumps(returned)))


if __name__ == "__main__":
    main(*sys.argv[1:])
