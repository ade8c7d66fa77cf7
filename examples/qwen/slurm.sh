#!/usr/bin/env bash
#SBATCH --job-name=qwen
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Trains one stage of Qwen2.5 and Qwen3 under Slurm, one launcher on each node. From the repository's root:
#
#   PRESET=qwen3_8b sbatch examples/qwen/slurm.sh sft
#   sbatch --nodes 1 examples/qwen/slurm.sh sft --training.train_steps 800
#   bash examples/qwen/slurm.sh pretrain --dry-run             # anywhere, without Slurm
#
# PRESET is that of train.sh. The rest is as in examples/ziya_13b/slurm.sh.
set -euo pipefail

# Slurm runs a copy of this file from its own folder, so paths are relative to where sbatch ran.
examples=${SLURM_SUBMIT_DIR:-.}/examples
export SCRIPT=$examples/qwen/train.sh PRESET=${PRESET:-qwen2_5_7b} NNODES=${NNODES:-8}
exec bash "$examples/ziya_13b/slurm.sh" "$@"
