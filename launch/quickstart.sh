#!/usr/bin/env bash
# Trains a small generator by score distillation in a few minutes, makes meshes of its prompts and
# one picture that shows them from four sides beside ground truth. Started again, it goes on where it
# stopped; what is finished is not done again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_setup.sh
setup_venv train,numba

PROMPTS=data/prompts/quickstart.txt
RUN=runs/quickstart
OUT=outputs/quickstart

start=$SECONDS
"$VENV/bin/python" train_amortized.py --config configs/toybox/quickstart.yaml --resume auto
echo "== trained in $((SECONDS - start)) s: $RUN (tensorboard --logdir $RUN)"

if [[ $OUT/results.json -nt $RUN/latest ]]; then
    echo "== nothing left to do: $OUT/quickstart.png, $OUT/results.json"
    exit
fi

start=$SECONDS
"$VENV/bin/python" generate.py --checkpoint "$RUN" --prompts "$PROMPTS" --output "$OUT" --preview
echo "== meshes in $((SECONDS - start)) s: $OUT"

start=$SECONDS
"$VENV/bin/scaledreamer" evaluate --checkpoint "$RUN" --prompts "$PROMPTS" --output "$OUT"
echo "== judged in $((SECONDS - start)) s: $OUT/quickstart.png, $OUT/results.json"
