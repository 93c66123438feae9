#!/bin/sh
# Print the path of a Python 3.12 or 3.13 that can make environments, or one line on stderr and status 2.
#   sh tools/find_python.sh [PYTHON]        PYTHON: a command to take, or 3.12 or 3.13 to look for that version alone
# Looked at, in order: python3.12, python3.13, python3 and python on PATH; versions that pyenv has, selected or not; those of uv.
# Each is asked for its version: a pyenv shim of a version that is not selected exists on PATH and does not run.

versions="3.12 3.13" wanted="3.12 or 3.13"
case ${1:-} in 3.12 | 3.13) versions=$1 wanted=$1 && shift ;; esac
ask="import sys
if '%d.%d' % sys.version_info[:2] not in '$versions'.split(): sys.exit(3)
import ensurepip, venv
print(sys.executable)"

found_old= without_venv=
try() {
    answer=$("$1" -I -c "$ask" 2>/dev/null) && { printf '%s\n' "$answer"; exit 0; }
    case $? in
    3) found_old=$("$1" -I -c 'import platform; print(platform.python_version())' 2>/dev/null) ;;
    1) without_venv=$1 ;;
    esac
}

if [ -n "${1:-}" ]; then
    try "$1"
    if [ -n "$without_venv" ]; then
        echo "set-up: PYTHON=$1 cannot make an environment (no venv or ensurepip): install its venv package (Debian: python3.12-venv)" >&2
    elif [ -n "$found_old" ]; then
        echo "set-up: PYTHON=$1 is Python $found_old, expected 3.12 or 3.13: name another" >&2
    else
        echo "set-up: PYTHON=$1 does not run: name a Python 3.12 or 3.13" >&2
    fi
    exit 2
fi

for name in $(printf 'python%s ' $versions) python3 python; do
    path=$(command -v "$name") && try "$path"
done
for version in $versions; do
    for path in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version"*/bin/python \
        "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/uv/python}/cpython-$version"*/bin/python3; do
        [ -x "$path" ] && try "$path"
    done
done
if [ -n "$without_venv" ]; then
    echo "set-up: $without_venv cannot make an environment (no venv or ensurepip): install its venv package (Debian: python3.12-venv)" >&2
else
    echo "set-up: no Python $wanted found${found_old:+ (only $found_old)}: install one (apt install python3.12 python3.12-venv," \
        "or uv python install 3.12), or name it: make PYTHON=/path/to/python3.12" >&2
fi
exit 2
