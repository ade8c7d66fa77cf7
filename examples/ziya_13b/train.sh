#!/usr/bin/env bash
# Trains one stage of Ziya2-13B on this node, or as one node of several, from the repository's root:
#
#   bash examples/ziya_13b/train.sh pretrain
#   NNODES=10 NODE_RANK=$R HEAD=node0 bash examples/ziya_13b/train.sh pretrain --optim.lr 3e-5
#   NNODES=10 bash examples/ziya_13b/train.sh pretrain --dry-run
#
# On many nodes, start it on each with its own NODE_RANK; HEAD is the host of node rank 0. What
# follows the stage overrides the YAML files; --dry-run comes first there, prints the torchrun
# command and the memory plan, needs no GPU and no file of the model, and then lists what is missing
# (exit code 78; 0 where all is there and fits). The same command resumes. The stages are pretrain,
# sft, reward, dpo, and rejection: whole rounds of rejection sampling.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stage=${1:?say which stage, a YAML file beside this script: pretrain, sft, reward, rejection or dpo}
shift
nodes=${NNODES:-1}
gpus=${GPUS_PER_NODE:-8}
layout=${LAYOUT:-$here/layouts/$((nodes * gpus)).yaml}
run=${RUN:-runs/ziya2_13b_$stage}

for file in "$here/$stage.yaml" "$layout"; do
    if [[ ! -f $file ]]; then
        echo "train.sh: $file does not exist. Stages and layouts are the YAML files of" \
            "$here and its layouts/; LAYOUT=FILE takes another layout." >&2
        exit 78
    fi
done

launch=(--nnodes "$nodes" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$gpus")
launch+=(--run-folder "$run")
if [[ ${1:-} == --dry-run ]]; then
    launch+=(--dry-run)
    shift
    HEAD=${HEAD:-node0}
fi
if ((nodes > 1)); then
    launch+=(--endpoint "${HEAD:?say which host is node rank 0}:${PORT:-29500}")
fi

tools=$here/../../tools
if [[ $stage == rejection ]]; then
    command=("$tools/rejection_sample.py" --config "$here/rejection.yaml")
    command+=(--training.config "[$here/base.yaml, $layout]")
else
    command=("$tools/train.py" --preset ziya2_13b --config "$here/base.yaml")
    command+=(--config "$layout" --config "$here/$stage.yaml")
fi
exec "${PYTHON:-python}" "$tools/launch.py" "${launch[@]}" "${command[@]}" --output-dir "$run" "$@"
