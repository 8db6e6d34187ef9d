"""Runs gradwise commands as processes of their own, each forked off one that has done the imports already.

Reads a request per line, {"argv": [...], "cwd": ..., "out": ..., "err": ..., "group": ...}, where null closes
a stream and `group` asks for a process group of its own. Answers with the pid of the command at once and with
its exit code at its end. The forked process is `python -m gradwise`, with its own arguments, folder, standard
streams and signals (and saves the 6 s of imports). Only at the very end it leaves without taking the
interpreter apart, which would copy every page it shares with its parent (2 s).
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import gradwise.demo
import gradwise.run.summary
from gradwise import Model, Recipe
from gradwise.run.model import load_model

STORIES = str(Path(gradwise.demo.__file__).parent / "assets" / "stories260K")


def become(request: dict) -> int:
    """Run the command; the exit code that the interpreter would leave with."""
    if request["group"]:
        os.setpgid(0, 0)
    os.chdir(request["cwd"])
    for stream, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY),
        (2, request["err"], os.O_WRONLY),
    ):
        if path is None:
            os.close(stream)
            setattr(sys, ("stdin", "stdout", "stderr")[stream], None)
        else:
            os.dup2(os.open(path, mode), stream)
    # As a shell would start it, even where this whole suite runs in the background and ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["gradwise", *request["argv"]]
    try:
        runpy.run_module("gradwise", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> None:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


# The first recipe and the first model of a process make tables that later ones use.
Recipe.from_dict({})
load_model(Model(name=STORIES))
gc.freeze()
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        leave(become(json.loads(line)))
    print(json.dumps({"pid": pid}), flush=True)
    print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
