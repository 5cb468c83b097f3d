# Sourced by the scripts beside it. `setup_venv EXTRAS` makes $VENV hold this package with those
# extras at the pinned versions, and returns at once when it already does.
# SCALEDREAMER_VENV: where the environment lies (default: .venv). PYTHON: the interpreter to use.

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${SCALEDREAMER_VENV:-$REPO/.venv}"

_find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3" >&2
    return 1
}

setup_venv() {
    local extras="$1" python stamp wanted start=$SECONDS
    stamp="$VENV/.scaledreamer-${extras//,/-}"
    wanted="$(echo "$REPO" | cat - "$REPO/pyproject.toml" "$REPO/constraints.txt" | sha256sum)"
    if [[ -x "$VENV/bin/python" && -f "$stamp" && "$(<"$stamp")" == "$wanted" ]]; then
        return
    fi
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(_find_python)" || return 1
        echo "== creating $VENV"
        if ! "$python" -m venv "$VENV"; then
            echo "error: $python can't create $VENV; install python3-venv or set PYTHON" >&2
            return 1
        fi
    fi
    echo "== installing scaledreamer[$extras] into $VENV (once; some minutes)"
    PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install --quiet \
        -e "$REPO[$extras]" -c "$REPO/constraints.txt" || return 1
    echo "$wanted" >"$stamp"
    echo "== installed in $((SECONDS - start)) s"
}
