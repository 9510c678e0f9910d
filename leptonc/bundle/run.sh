#!/bin/sh
# Runs the model: ./run.sh "PROMPT", with options of `lepton-edge run` behind it. Without a PROMPT it chats.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -x "$here/venv/bin/python" ]; then
    python=$here/venv/bin/python
    program=$here/venv/bin/lepton-edge
elif [ -d "$here/lib" ]; then
    python=${PYTHON:-python3}
    program=$here/lib/bin/lepton-edge
    PYTHONPATH=$here/lib
    export PYTHONPATH
else
    echo "error: expected the runtime in $here/venv, found none" >&2
    echo "hint: run $here/install.sh first" >&2
    exit 4
fi
exec "$python" "$program" run "$here/model.lepton" "$@"
