# shellcheck shell=bash disable=SC2034
# What the two models of run.sh differ in: choose_model NAME.

choose_model() {
    local folder=examples/quickstart
    case $1 in
        ziya)
            TEMPLATE=ziya
            TOKENIZER_FLAGS=(--vocab-size 1998 --character-coverage 0.99)
            TOKENIZER_FLAGS+=(--added-token "<human>" --added-token "<bot>")
            MODEL_FLAGS=(--config "$folder/tiny.yaml")
            REWARD_FLAGS=(--config "$folder/reward.yaml")
            SFT_CONFIGS="[$folder/tiny.yaml, $folder/sft.yaml]"
            ;;
        qwen)
            TEMPLATE=qwen3_nothink
            TOKENIZER_FLAGS=(--kind byte_bpe --vocab-size 1994)
            TOKENIZER_FLAGS+=(--added-token "<think>" --added-token "</think>")
            MODEL_FLAGS=(--config "$folder/tiny.yaml" --config "$folder/qwen.yaml")
            REWARD_FLAGS=(--config "$folder/reward.yaml" --config "$folder/qwen_reward.yaml")
            SFT_CONFIGS="[$folder/tiny.yaml, $folder/qwen.yaml, $folder/sft.yaml]"
            ;;
        *)
            echo "ConfigError: MODEL is $1. Set it to ziya or qwen." >&2
            exit 78
            ;;
    esac
}
