#!/usr/bin/env bash
# Sets up the environment once, then lint, format, types and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_setup.sh
setup_venv dev

failed=()
step() {
    local name="$1" start=$SECONDS
    shift
    echo "== $name"
    "$@" || failed+=("$name")
    echo "== $name: $((SECONDS - start)) s"
}

# Kernels read TRITON_INTERPRET when they are imported, so this is a process of its own.
interpreted() {
    local code=0
    TRITON_INTERPRET=1 "$VENV/bin/python" -m pytest -q -m interpreted "$@" || code=$?
    [[ $code == 0 || ($code == 5 && $# -gt 0) ]] # 5: the arguments chose no such test
}

step "ruff check" "$VENV/bin/ruff" check .
step "ruff format" "$VENV/bin/ruff" format --check .
step "pyright" "$VENV/bin/pyright" --pythonpath "$VENV/bin/python"
step "pytest" "$VENV/bin/python" -m pytest -q -m "not interpreted" "$@"
step "pytest, Triton interpreted" interpreted "$@"

if ((${#failed[@]})); then
    echo "== failed: $(printf '%s; ' "${failed[@]}")"
    exit 1
fi
echo "== all passed in $SECONDS s"
