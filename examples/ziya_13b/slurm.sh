#!/usr/bin/env bash
#SBATCH --job-name=ziya2_13b
#SBATCH --nodes=10
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Trains one stage of Ziya2-13B under Slurm, one launcher on each node. From the repository's root:
#
#   sbatch examples/ziya_13b/slurm.sh pretrain
#   sbatch --nodes 8 examples/ziya_13b/slurm.sh sft --training.train_steps 800
#   bash examples/ziya_13b/slurm.sh pretrain --dry-run          # anywhere, without Slurm
#
# 10 minutes before the time limit, or when the job is preempted, the workers get SIGTERM; the job is
# then requeued and resumes from its checkpoint.
set -euo pipefail

# Slurm runs a copy of this file from its own folder, so paths are relative to where sbatch ran.
# Examples of other models set SCRIPT and PRESET.
script=${SCRIPT:-${SLURM_SUBMIT_DIR:-.}/examples/ziya_13b/train.sh}
stage=${1:?give a stage: pretrain, sft, reward, rejection or dpo}
export NNODES=${SLURM_JOB_NUM_NODES:-${NNODES:-10}}
export RUN=${RUN:-runs/${PRESET:-ziya2_13b}_$stage}

if [[ ${2:-} == --dry-run ]]; then
    echo "srun --kill-on-bad-exit=1 bash $script $*"
    exec bash "$script" "$@"
fi

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export HEAD=${nodes%%$'\n'*}
export PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}  # two jobs may share a host
code=0
# shellcheck disable=SC2016  # NODE_RANK differs from task to task
srun --kill-on-bad-exit=1 \
    bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$0" "$@"' "$script" "$@" || code=$?

if ((code == 75)) && grep -qs '"state": "preempted"' "$RUN/launch/node_0.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
