#!/bin/sh
# What the image runs:
#   torchserve NAME=FILE.mar...   TorchServe with archives of $MODEL_STORE ("all": every archive, under its own name)
#   ray                           Ray Serve on this machine alone, with the applications of $SERVE_CONFIG
#   COMMAND...                    anything else, such as `elasticlm --help`
# TERM stops either server in an orderly way. It is needed because a process with the id 1 ignores TERM by default.
set -eu

# Wait for the server, also when a signal interrupts the first wait.
wait_for() {
    wait "$1" || while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
}

case "${1:-}" in
torchserve)
    shift
    rm -f "$TMPDIR/.model_server.pid"  # of a container that was killed; its process id may belong to another process now
    torchserve --start --foreground --ncs --model-store "$MODEL_STORE" --models "$@" --ts-config "$TS_CONFIG" &
    server=$!
    trap 'torchserve --stop' TERM INT
    wait_for "$server"
    ;;
ray)
    env --default-signal=INT serve run "$SERVE_CONFIG" &  # the shell lets background processes ignore INT
    server=$!
    trap 'kill -INT "$server"' TERM INT
    wait_for "$server"
    ;;
*)
    exec "$@"
    ;;
esac
