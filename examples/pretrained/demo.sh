#!/usr/bin/env bash
# A pretrained model from start to end: fetch it and text for it, convert, compare perplexity, generate.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-pretrained-output}
mkdir -p "$out"

run() {
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  "$@"
}

run python "$here/make_model.py" "$out/model"
[ -f "$out/texts/code/evaluation.jsonl" ] || run python "$here/make_texts.py" "$out/texts"
rm -rf "$out/int8-2of8"
run slideconvert convert "$out/model" "$out/int8-2of8" --scheme int8 --pattern 2_8 --preset balanced \
  --calibration "$out/texts/prose/calibration.jsonl" --samples 32 --length 512
run slideconvert eval "$out/model" "$out/int8-2of8" --text "$out/texts/prose/evaluation.jsonl" --length 512 --sequences 16
run slideconvert generate "$out/int8-2of8" --prompt 'The capital of France is'
printf '\n%s\n' "$out/int8-2of8/report.html has the error and size of every layer."
