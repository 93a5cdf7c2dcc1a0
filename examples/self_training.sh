#!/bin/sh
# Rounds of self-training from search trees, as in AlphaMath and ReST-MCTS*: a policy's trees label steps with values and
# find right solutions; a value model learns the values, the policy imitates the right solutions, and both search again.
#
#     examples/self_training.sh POLICY ROUNDS DIRECTORY [options of the problems and of sampling]
#     examples/self_training.sh runs/tiny/policy 2 runs/rounds --task carry --sampling.max-new-tokens 48
set -eu
policy=$1 rounds=$2 out=$3 values=none
shift 3
learn="--text.pieces prompt --text.end --no-plots ${TRAIN_OPTIONS:-}"
for round in $(seq 1 "$rounds"); do
    here=$out/$round
    mkdir -p "$here"
    prm-jax label "$policy" "$here/tree.jsonl" --method tree --labels q --tree.scorer "$values" "$@"
    prm-jax train-prm --data.path "$here/tree.jsonl" --model.path "$policy" --prm.kind value --text.separator "" $learn \
        --run-dir "$here/values"
    prm-jax train-prm --data.path "$here/tree.jsonl" --model.path "$policy" --prm.kind imitation --text.separator "" $learn \
        --run-dir "$here/imitation"
    policy=$here/imitation/model values=$here/values/model
    prm-jax search "$policy" --method majority --samples 1 "$@"
    prm-jax search "$policy" --method step_beam --scorer "$values" "$@"
done
