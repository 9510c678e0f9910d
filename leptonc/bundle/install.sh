#!/bin/sh
# Installs the runtime from the folder wheels, without a network. PYTHON names the interpreter. Default: python3.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
want="@PYTHON@ on @MACHINE@"

fail() {
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit "$3"
}

command -v "$python" >/dev/null 2>&1 ||
    fail "expected Python @PYTHON@, found no $python" "install it, or name it: PYTHON=/path/to/python ./install.sh" 4
found=$("$python" -c 'import platform, sys; print("%d.%d on %s" % (*sys.version_info[:2], platform.machine()))')
[ "$found" = "$want" ] ||
    fail "expected Python $want, found Python $found" \
        "name another one with PYTHON, or pack again with --python-version and --platform" 4
if command -v sha256sum >/dev/null 2>&1; then
    damaged=$(sha256sum -c SHA256SUMS 2>/dev/null | grep -v ': OK$' || true)
    [ -z "$damaged" ] || fail "expected every file as it was packed, found: $damaged" "copy the folder again" 1
fi

set -- wheels/pip-*.whl
pip=$1/pip
rm -rf venv lib
# The environment gets pip from its wheel: a system may have the module venv, and not what brings pip into one.
if "$python" -m venv --without-pip@SYSTEM@ venv >/dev/null 2>&1; then
    venv/bin/python "$pip" --isolated --disable-pip-version-check --quiet install \
        --no-index --find-links wheels "@REQUIREMENT@"
else
    rm -rf venv
    "$python" "$pip" --isolated --disable-pip-version-check --quiet install \
        --no-index --find-links wheels --target lib "@REQUIREMENT@"
fi
echo "installed: ./run.sh \"PROMPT\""
