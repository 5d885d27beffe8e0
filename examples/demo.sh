#!/usr/bin/env bash
# Runs the main commands on the demo model: convert, verify, perplexity before and after, generate.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-demo-output}
rm -rf "$out"
mkdir -p "$out"

run() {
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  "$@"
}

model=$here/demo_model
text=$here/demo_text/evaluation.jsonl
run slideconvert convert "$model" "$out/int8-2of8" --scheme int8 --pattern 2_8 --calibration "$here/demo_text/calibration.jsonl" --length 512
run slideconvert relayout "$out/int8-2of8" "$out/int8-2of8-dense" --layout dense
run slideconvert verify "$out/int8-2of8" --source "$model"
run slideconvert eval "$model" "$out/int8-2of8" "$out/int8-2of8-dense" --text "$text" --sequences 32
run slideconvert generate "$out/int8-2of8" --prompt 'def '
printf '\nThe outputs are in %s:\n' "$out"
printf '  %-28s %s\n' \
  int8-2of8 'slide layout: 2:4 windows for sparse tensor cores' \
  int8-2of8-dense 'the same weights for stock vLLM and transformers' \
  int8-2of8/report.html 'error and size of every layer' \
  int8-2of8/README.md 'the model card'
