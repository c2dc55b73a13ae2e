"""Run commands in forked children of one process that has imported everything, so that a kill hits the work itself.

A script: reads one JSON object per line {"command", "argv", "kill_after_s", "most_bytes"}, runs the command and answers
{"code", "seconds", "stderr"}. ``code`` is negative for a signal. ``most_bytes`` limits the size of files as a full disk
does (RLIMIT_FSIZE).
"""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time


def run(main, argv, kill_after_s=None, most_bytes=None):
    """Run a command's main in a child, killed after some seconds; return its exit code, its time and its stderr."""
    from elasticlm import command

    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        try:
            command.run(main, argv)
        except SystemExit as ended:
            os._exit(ended.code)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writing)
    said = b""
    killed = False
    while True:
        left_s = None if kill_after_s is None or killed else max(0.0, started + kill_after_s - time.monotonic())
        if not select.select([reading], [], [], left_s)[0]:
            os.kill(child, signal.SIGKILL)
            killed = True
        elif part := os.read(reading, 65536):
            said += part
        else:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - started
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that a killed command had started
    return {"code": code, "seconds": seconds, "stderr": said.decode()}


def serve():
    """Import everything, then answer requests."""
    import datasets.arrow_dataset  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.pyplot  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import pandas  # noqa: F401

    import elasticlm.backend.onnx_graph
    import elasticlm.handlers.archive
    import elasticlm.handlers.packing
    import elasticlm.trainer.checkpoints
    import elasticlm.trainer.export
    import elasticlm.trainer.exporting
    import elasticlm.trainer.finetune
    import elasticlm.trainer.index
    import elasticlm.trainer.loop
    import elasticlm.trainer.stored_vectors
    import elasticlm.trainer.task_objectives
    from elasticlm.backend import onnx_export

    onnx_export.LEAST_COSINE = 0.5  # a tiny random model is no match for eight bits
    mains = {"finetune": elasticlm.trainer.finetune.main, "index": elasticlm.trainer.index.main,
             "export": elasticlm.trainer.export.main, "archive": elasticlm.handlers.archive.main}  # fmt: skip
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(mains[request.pop("command")], **request)), flush=True)


if __name__ == "__main__":
    serve()
