#!/usr/bin/env bash
# All runs of one machine, in process: no server, no network, no charts (draw them elsewhere with
# `gorgon bench --redraw`).
#
#   benchmarks/gpu.sh gpu MODEL.gguf OUT     the default model, then 7B shapes, on the GPU
#   benchmarks/gpu.sh cpu MODEL.gguf OUT     the same on the processor's cores
#
# Needs gorgon's modules on PYTHONPATH, llama_cpp with its libraries, and gguf. Writes OUT/NAME.json,
# one file a run, each as soon as it is done; a run that fails is reported and the rest goes on.
# PROMPTS=mt_bench.jsonl takes other prompts than the built-in ones for the default model; MODES
# other modes. Answers are of different lengths, as servers see them (SPREAD=0: all the same). On a GPU
# Q4_K_M is tuned and run again as tuned, the table of `gorgon tune` beside the results.
# DEFAULT_COUNT=2 SHAPE=tiny LENGTH=16 COUNT=2 CLIENTS="1 2" try the script anywhere in a minute.
set -uo pipefail
device="${1:?gpu or cpu}" model="${2:?the default model}" out="${3:?a folder for results}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export GORGON_MEASURE_SECONDS="${GORGON_MEASURE_SECONDS:-5}"
scratch="${SCRATCH:-/tmp/gorgon-bench}"
export GORGON_PROFILE_FOLDER="$scratch/profiles"
shape="${SHAPE:-7b}" length="${LENGTH:-96}"
mkdir -p "$out" "$scratch"

if [[ $device == gpu ]]; then
    many="${CLIENTS:-1 2 4 8 16 32 64}" few="${CLIENTS:-1 8}" count="${COUNT:-24}"
    kinds="${KINDS:-F16 Q8_0 Q4_K_M}" options=(--gpu-layers -1)
else
    export CUDA_VISIBLE_DEVICES=""
    many="${CLIENTS:-1 2 4 8 16 32}" few="${CLIENTS:-1 4}" count="${COUNT:-4}"
    kinds="${KINDS:-Q8_0 Q4_K_M}" options=(--gpu-layers 0 --threads "$(nproc)")
fi

bench() { # bench NAME ARGUMENTS...
    local name="$device-$1" began=$SECONDS
    shift
    if timeout "${LIMIT:-150}" python3 -m gorgon.cli bench --in-process --no-charts --curve \
        --length "$length" --spread "${SPREAD:-0.5}" --out "$scratch/$name" "${options[@]}" "$@"; then
        cp "$scratch/$name/result.json" "$out/$name.json"
    else
        echo "FAILED: $name"
    fi
    echo "== $name: $((SECONDS - began)) s"
}

bench default --model "$model" --heads "${HEADS:-$here/gorgon/assets/smollm2-135m-instruct.medusa.gguf}" \
    --modes "${MODES:-normal medusa lookup tree:8}" --clients "$many" \
    ${PROMPTS:+--prompts "$PROMPTS"} --count "${DEFAULT_COUNT:-64}" --waves "${WAVES:-4}" --num-cells 24576

shape() { # shape NAME KIND ACCURACIES ARGUMENTS...: the weights are written once for all runs
    local name="$shape-${2,,}-$1" file="$shape-${2,,}.gguf" kind="$2" accuracies="$3"
    shift 3
    mkdir -p "$scratch/$device-$name"
    [[ -e "$scratch/$file" ]] && ln -sf "$scratch/$file" "$scratch/$device-$name/$file"
    bench "$name" --shape "$shape" --type "$kind" --replay "$accuracies" --modes "${MODES:-normal medusa tree:16}" \
        --clients "$few" --count "$count" --waves "${WAVES:-3}" --num-cells 4096 "$@"
    [[ -L "$scratch/$device-$name/$file" ]] || mv -f "$scratch/$device-$name/$file" "$scratch/"
}

for kind in $kinds; do
    shape vicuna-medusa "$kind" vicuna-medusa
    shape vicuna-conditioned "$kind" vicuna-conditioned
    if [[ $device == gpu && $kind == Q4_K_M ]]; then
        python3 -m gorgon.cli tune --model "$scratch/$shape-${kind,,}.gguf" "${options[@]}" \
            --seconds 2 2>/dev/null | tee "$out/$device-$shape-${kind,,}-tune.txt"
        shape tuned "$kind" vicuna-medusa
        rm -f "$GORGON_PROFILE_FOLDER"/tuned-*.json
    fi
    [[ -n "${KEEP:-}" ]] || rm -f "$scratch/$shape-${kind,,}.gguf"
done
