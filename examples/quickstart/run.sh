#!/usr/bin/env bash
# The full training pipeline on a laptop, from raw text to a policy improved by a reward model:
#
#   make demo               or    bash examples/quickstart/run.sh [FOLDER]
#   make demo MODEL=qwen    or    MODEL=qwen bash examples/quickstart/run.sh [FOLDER]
#
# The first trains a small Ziya, the second a small Qwen3: byte-level BPE, normalized query and key
# heads, three query heads to a key head, Qwen3's chat template. checks/models.sh has the flags.
#
# Each line after `run` is what you would type; `run` prints it, shows and logs its output, and stops
# at the first error. The lines with `checks` fail if a training stage did not do its work. All
# output is in $OUT: FOLDER, by default demo_out.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/checks/shell.sh"
source "$(dirname "${BASH_SOURCE[0]}")/checks/models.sh"
choose_model "${MODEL:-ziya}"
start_demo "${1:-demo_out}"

step "write synthetic Chinese medical text, and dialogues about it (40% of SFT answers are wrong)"
run python -m examples.quickstart.corpus.generator --output "$OUT/corpus"
run python -m examples.quickstart.dialogues --output "$OUT/dialogues"

step "train the tokenizer"
run python tools/train_tokenizer.py --input "$OUT/corpus/train.jsonl" --output "$OUT/tokenizer" \
    "${TOKENIZER_FLAGS[@]}"

step "preprocess to .bin/.idx"
for name in train valid; do
    run python tools/preprocess_data.py --input "$OUT/corpus/$name.jsonl" \
        --tokenizer "$OUT/tokenizer" --output-prefix "$OUT/data/$name" --workers 2
done
for name in sft_train sft_valid; do
    run python tools/preprocess_data.py --input "$OUT/dialogues/$name.jsonl" \
        --tokenizer "$OUT/tokenizer" --output-prefix "$OUT/data/$name" \
        --stage sft --template "$TEMPLATE" --seq-length 256
done
for name in pairs_train pairs_valid pairs_test; do
    run python tools/preprocess_data.py --input "$OUT/dialogues/$name.jsonl" \
        --tokenizer "$OUT/tokenizer" --output-prefix "$OUT/data/$name" \
        --stage preference --template "$TEMPLATE" --seq-length 256
done
run python tools/inspect_dataset.py check "$OUT/data/train"

step "pretrain to step 100 with 2 tensor-parallel ranks"
run python tools/launch.py --nproc-per-node 2 tools/train.py \
    "${MODEL_FLAGS[@]}" --output-dir "$OUT/run" --tokenizer "$OUT/tokenizer" \
    --data.train "$OUT/data/train" --data.valid "$OUT/data/valid" \
    --parallel.tensor_parallel_size 2 --parallel.sequence_parallel true --training.stop_step 100

step "resume with 2 pipeline stages, until the held-out loss stops falling"
run python tools/launch.py --nproc-per-node 2 tools/train.py \
    "${MODEL_FLAGS[@]}" --output-dir "$OUT/run" --tokenizer "$OUT/tokenizer" \
    --data.train "$OUT/data/train" --data.valid "$OUT/data/valid" \
    --parallel.pipeline_parallel_size 2
BEST="$OUT/run/checkpoints/$(cat "$OUT/run/checkpoints/best")"

step "export to Hugging Face; transformers must give the same logits"
run python tools/convert_checkpoint.py export-hf --checkpoint "$BEST" \
    --output "$OUT/hf/pretrained" --verify-logits

step "score text about diseases and in templates that training never saw"
run python -m examples.quickstart.checks pretraining "$OUT"

step "fine-tune on dialogues (SFT) with 2 data-parallel ranks"
run python tools/launch.py --nproc-per-node 2 tools/train.py \
    "${MODEL_FLAGS[@]}" --config examples/quickstart/sft.yaml \
    --output-dir "$OUT/sft" --tokenizer "$OUT/tokenizer" --checkpoint.load "$BEST" \
    --data.train "$OUT/data/sft_train" --data.valid "$OUT/data/sft_valid"
run python -m examples.quickstart.checks sft "$OUT"

step "train a reward model on pairs of answers, from the SFT model"
run python tools/launch.py --nproc-per-node 2 tools/train.py \
    "${MODEL_FLAGS[@]}" "${REWARD_FLAGS[@]}" \
    --output-dir "$OUT/reward" --tokenizer "$OUT/tokenizer" --checkpoint.load "$OUT/sft" \
    --data.train "$OUT/data/pairs_train" --data.valid "$OUT/data/pairs_valid" \
    --data.test "$OUT/data/pairs_test"
run python -m examples.quickstart.checks reward "$OUT"

step "rejection sampling: draw eight answers to each question, train on the best one"
run python tools/launch.py --nproc-per-node 2 tools/rejection_sample.py \
    --config examples/quickstart/rejection.yaml --output-dir "$OUT/rejection" --rounds 1 \
    --policy "$OUT/sft" --reward-model "$OUT/reward" \
    --prompts.train "['$OUT/dialogues/prompts_train.jsonl']" \
    --prompts.held_out "['$OUT/dialogues/prompts_test.jsonl']" --training.config "$SFT_CONFIGS"
run python -m examples.quickstart.checks rejection "$OUT"

step "export the final policy and the reward model, and compare logits again"
run python tools/convert_checkpoint.py export-hf --checkpoint "$OUT/rejection" \
    --output "$OUT/hf/policy" --verify-logits
run python tools/convert_checkpoint.py export-hf --checkpoint "$OUT/reward" \
    --output "$OUT/hf/reward" --verify-logits

step "answer held-out questions greedily, before and after rejection sampling"
run python -m examples.quickstart.checks questions "$OUT"
for name in sft rejection; do
    run python tools/generate.py --checkpoint "$OUT/$name" --prompts "$OUT/questions.jsonl" \
        --output "$OUT/answers_$name.jsonl" --max-new-tokens 48
done
run python -m examples.quickstart.checks answers "$OUT"

step "done: what each stage changed, and where everything is"
run python -m examples.quickstart.checks summary "$OUT"
