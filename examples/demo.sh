#!/usr/bin/env bash
# Runs the main commands on the demo model: convert, verify, perplexity before and after, generate. Each stage says when it
# begins and what it took.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-demo-output}
rm -rf "$out"
mkdir -p "$out"
stage=0
stages=5

run() {
  local title=$1 begun=$SECONDS
  shift
  stage=$((stage + 1))
  printf '\n\033[1m[%s/%s] %s\033[0m\n$ %s\n' "$stage" "$stages" "$title" "$*"
  "$@"
  printf '[%s/%s] done in %s s, %s s in all\n' "$stage" "$stages" "$((SECONDS - begun))" "$SECONDS"
}

model=$here/demo_model
text=$here/demo_text/evaluation.jsonl
run 'convert: prune, quantize, pack and verify' \
  slideconvert convert "$model" "$out/int8-2of8" --scheme int8 --pattern 2_8 --calibration "$here/demo_text/calibration.jsonl" --samples 32 --length 512
run 'relayout: the same weights for stock loaders' \
  slideconvert relayout "$out/int8-2of8" "$out/int8-2of8-dense" --layout dense
run 'verify: every weight, against the source' \
  slideconvert verify "$out/int8-2of8" --source "$model"
run 'eval: perplexity and divergence from the source' \
  slideconvert eval "$model" "$out/int8-2of8" "$out/int8-2of8-dense" --text "$text" --sequences 8
run 'generate: continue a prompt' \
  slideconvert generate "$out/int8-2of8" --prompt 'def '
printf '\nThe outputs are in %s:\n' "$out"
printf '  %-28s %s\n' \
  int8-2of8 'slide layout: 2:4 windows for sparse tensor cores' \
  int8-2of8-dense 'the same weights for stock vLLM and transformers' \
  int8-2of8/report.html 'error and size of every layer' \
  int8-2of8/README.md 'the model card'
