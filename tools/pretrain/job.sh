#!/usr/bin/env bash
# Trains both models and measures them: on two GPUs side by side, on one in turn. job.sh TEXT VAL TOKENIZER OUT SECONDS
# State and compiled kernels stay in /tmp, so that a second call on the same machine goes on where the first stopped.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd); text=$1 val=$2 tokenizer=$3 out=$4 end=$(($(date +%s) + $5))
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TRITON_CACHE_DIR=/tmp/triton
one() { # MODEL GPU SECONDS
  CUDA_VISIBLE_DEVICES=$2 python3 "$here/train.py" --model "$1" --text "$text" --val "$val" --out "$out" --state "/tmp/state.$1" --seconds "$3" ${TRAIN:-}
  CUDA_VISIBLE_DEVICES=$2 python3 "$here/evaluate.py" --model "$1" --weights "$out" --val "$val" --tokenizer "$tokenizer" --out "$out/eval.$1.json"
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
CUDA_VISIBLE_DEVICES=0 python3 "$here/scan.py" || echo "THE SCAN KERNEL FAILED"
left() { echo $((end - $(date +%s))); }
if [[ $(nvidia-smi -L | wc -l) -ge 2 ]]; then
  one llama 0 "$(left)" & a=$!; one zamba 1 "$(left)" & b=$!; wait $a $b
else
  one llama 0 "$(left)"; one zamba 0 "$(left)"
fi
