#!/usr/bin/env bash
# Trains one stage of Qwen2.5 and Qwen3 on this node, or as one node of several, from the repository's root:
#
#   PRESET=qwen3_8b bash examples/qwen/train.sh sft --dry-run
#   PRESET=qwen3_8b bash examples/qwen/train.sh sft
#   PRESET=qwen2_5_32b NNODES=8 NODE_RANK=$R HEAD=node0 bash examples/qwen/train.sh pretrain
#
# PRESET is qwen2_5_7b (default), qwen2_5_14b, qwen2_5_32b, qwen3_8b or qwen3_14b; layouts/ has a folder
# for each. The rest is as in examples/ziya_13b/train.sh. The stages are pretrain, sft, reward, dpo and
# rejection.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export EXAMPLE=$here PRESET=${PRESET:-qwen2_5_7b}
export LAYOUTS=$here/layouts/$PRESET
exec bash "$here/../ziya_13b/train.sh" "$@"
