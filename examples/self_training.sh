#!/bin/sh
# Rounds of self-training from search trees, as in AlphaMath and ReST-MCTS*: a policy's trees label steps with values and
# find right solutions; a value model learns the values, the policy imitates the right solutions, and both search again.
#
#     examples/self_training.sh POLICY ROUNDS DIRECTORY [options of the task and of sampling]
#     TRAIN_OPTIONS="--train.learning-rate 1e-3 --train.epochs 4" \
#         examples/self_training.sh runs/tiny/policy 2 runs/rounds --task carry --sampling.max-new-tokens 48
#
# Every round labels its own training problems, PROBLEMS of them (64), and searches the same evaluation problems. RULE is
# alphamath (the default), rest_mcts or med_s3. LABEL_OPTIONS, TRAIN_OPTIONS and SEARCH_OPTIONS are added to each command of
# their kind. Started again, it continues where it was.
set -eu
if [ $# -lt 3 ]; then
    echo "usage: $0 POLICY ROUNDS DIRECTORY [options of the task and of sampling]" >&2
    exit 2
fi
policy=$1 rounds=$2 out=$3 values=none
shift 3
rule=${RULE:-alphamath} problems=${PROBLEMS:-64}
if [ "$rule" = rest_mcts ]; then labels=quality; else labels=q; fi

# learn KIND DIRECTORY: trains on the round's trees unless that is done.
learn() {
    [ -f "$2/result.json" ] && return
    if [ -f "$2/run.json" ]; then resume=--resume; else resume=; fi
    # shellcheck disable=SC2086
    prm-jax train-prm --data.path "$here/tree.jsonl" --model.path "$policy" --prm.kind "$1" --text.separator "" \
        --text.pieces prompt --text.end --no-plots ${TRAIN_OPTIONS:-} --run-dir "$2" $resume
}

for round in $(seq 1 "$rounds"); do
    here=$out/$round
    mkdir -p "$here"
    echo "round $round of $rounds: trees of $policy, valued by $values"
    # shellcheck disable=SC2086
    prm-jax label "$policy" "$here/tree.jsonl" --method tree --tree.rule "$rule" --labels "$labels" \
        --tree.scorer "$values" --problems "$problems" --first-problem $(((round - 1) * problems)) --resume \
        "$@" ${LABEL_OPTIONS:-}
    learn value "$here/values"
    learn imitation "$here/imitation"
    policy=$here/imitation/model values=$here/values/model
    # shellcheck disable=SC2086
    prm-jax search "$policy" --method majority --samples 1 "$@" ${SEARCH_OPTIONS:-}
    # shellcheck disable=SC2086
    prm-jax search "$policy" --method step_beam --scorer "$values" "$@" ${SEARCH_OPTIONS:-}
done
