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

step "ruff check" "$VENV/bin/ruff" check .
step "ruff format" "$VENV/bin/ruff" format --check .
step "pyright" "$VENV/bin/pyright" --pythonpath "$VENV/bin/python"
step "pytest" "$VENV/bin/python" -m pytest -q "$@"

if ((${#failed[@]})); then
    echo "== failed: $(printf '%s; ' "${failed[@]}")"
    exit 1
fi
echo "== all passed in $SECONDS s"
