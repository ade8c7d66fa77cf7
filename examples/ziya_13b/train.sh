#!/usr/bin/env bash
# Trains one stage of Ziya2-13B on this node, or as one node of several, from the repository's root:
#
#   bash examples/ziya_13b/train.sh pretrain
#   NNODES=10 NODE_RANK=$R HEAD=node0 bash examples/ziya_13b/train.sh pretrain --optim.lr 3e-5
#   NNODES=10 bash examples/ziya_13b/train.sh pretrain --dry-run
#
# On several nodes, start it on each with its own NODE_RANK; HEAD is the host of node rank 0.
# Arguments after the stage override the YAML files. --dry-run must be the first of them: it prints
# the torchrun command and the memory plan without GPU or model files, then lists missing inputs
# (exit code 78; 0 if everything exists and fits). The same command resumes. The stages are
# pretrain, sft, reward, dpo, and rejection: complete rounds of rejection sampling.
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../tools" && pwd)
here=${EXAMPLE:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}  # examples of other models set these
preset=${PRESET:-ziya2_13b}
layouts=${LAYOUTS:-$here/layouts}
stage=${1:?give a stage, a YAML file beside this script: pretrain, sft, reward, rejection or dpo}
shift
nodes=${NNODES:-1}
gpus=${GPUS_PER_NODE:-8}
layout=${LAYOUT:-$layouts/$((nodes * gpus)).yaml}
run=${RUN:-runs/${preset}_$stage}

for file in "$here/$stage.yaml" "$layout"; do
    if [[ ! -f $file ]]; then
        echo "train.sh: $file does not exist. Stages and layouts are the YAML files of" \
            "$here and of $layouts; LAYOUT=FILE takes another layout." >&2
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
    launch+=(--endpoint "${HEAD:?set it to the host of node rank 0}:${PORT:-29500}")
fi

if [[ $stage == rejection ]]; then
    command=("$tools/rejection_sample.py" --config "$here/rejection.yaml")
    command+=(--training.config "[$here/base.yaml, $layout]")
else
    command=("$tools/train.py" --preset "$preset" --config "$here/base.yaml")
    command+=(--config "$layout" --config "$here/$stage.yaml")
fi
exec "${PYTHON:-python}" "$tools/launch.py" "${launch[@]}" "${command[@]}" --output-dir "$run" "$@"
