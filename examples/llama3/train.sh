#!/usr/bin/env bash
# Trains one stage of Llama 3 and 3.1 on this node, or as one node of several, from the repository's root:
#
#   bash examples/llama3/train.sh sft --dry-run
#   PRESET=llama3_8b bash examples/llama3/train.sh sft
#   NNODES=8 NODE_RANK=$R HEAD=node0 bash examples/llama3/train.sh pretrain
#
# PRESET is llama3_1_8b (default) or llama3_8b. The rest is as in examples/ziya_13b/train.sh. The stages
# are pretrain, sft, reward, dpo and rejection.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export EXAMPLE=$here PRESET=${PRESET:-llama3_1_8b}
export LAYOUTS=$here/layouts
exec bash "$here/../ziya_13b/train.sh" "$@"
