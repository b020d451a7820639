#!/usr/bin/env bash
# The whole way on synthetic scans: scans -> visual words -> TFRecord shards ->
# pre-training on two replicas -> SavedModel encoder -> embedding of a scan.
#
#   bash tools/quickstart.sh [OUT]      OUT is `out` by default
#
# Under 10 minutes on two CPU cores after the installation into .venv. The same
# command again goes on where it was stopped.
set -euo pipefail
mkdir -p "${1:-out}"
OUT="$(cd "${1:-out}" && pwd)"
source "$(dirname "$0")/venv.sh"

SCANS=24
PIPELINE='runner=FnApiRunner,direct_num_workers=2'
PIPELINE+=',direct_running_mode=multi_processing'

_stage() {
  local title="$1" start="$SECONDS"
  shift
  echo
  echo "== $title"
  "$@"
  TIMES+=("$(printf '%5d s  %s' $((SECONDS - start)) "$title")")
}

_make_scans() {
  [ -d "$OUT/scans" ] || python tools/make_phantom.py --out "$OUT/scans" \
    --scans "$SCANS" --size 192,192,128 --seed 1
}

_build_data_set() {
  # In a subshell: `tfds build` works in the folder of the data set.
  (cd beam_jobs && tfds build transvw_luna16 --manual_dir "$OUT/scans" \
    --data_dir "$OUT/tfds" \
    --beam_pipeline_options="$PIPELINE" > "$OUT/tfds.log" 2>&1) || {
    tail -n 20 "$OUT/tfds.log" >&2
    return 1
  }
  # What a second run finds built already says nothing more.
  grep -E '^(scans|words|warning|note): ' "$OUT/tfds.log" || true
}

_embed_a_scan() {
  local scans=("$OUT"/scans/subset9/*.mhd)
  python -m transvw_tf2.embed --model "$OUT/encoder" --scan "${scans[0]}" \
    --output "$OUT/embedding.npz"
}

TIMES=()
_stage "$SCANS synthetic chest CT scans" _make_scans
_stage 'visual words and TFRecord shards' _build_data_set
_stage 'pre-training' python -m transvw_tf2.train \
  --gin_file gin/runs/quickstart.gin --data "$OUT/tfds" \
  --workdir "$OUT/pretrain" --devices cpu:2
_stage 'SavedModel encoder' python -m transvw_tf2.export \
  --workdir "$OUT/pretrain" --output "$OUT/encoder" --overwrite
_stage 'embedding of a scan' _embed_a_scan
_stage 'report' python tools/make_report.py --data "$OUT/tfds" \
  --workdir "$OUT/pretrain" --output "$OUT/report" --check
echo
echo "== done in $SECONDS s, all of it in $OUT"
printf '%s\n' "${TIMES[@]}"
