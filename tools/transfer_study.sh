#!/usr/bin/env bash
# What pre-training is worth, from scans to plots, on patients whose nodules are
# known: of the template anatomy, or bent from a real scan.
#
#   bash tools/transfer_study.sh OUT [SCAN]
#
# Pre-trains on some patients by words, by restoration and by both, fine-tunes
# from each and from scratch on others, and leaves tables and plots in
# OUT/study. Some hours on two CPU cores; the same command again goes on where it
# was stopped. The variables below can be set from outside; FLAGS are any of
# tools/make_phantom.py and count more than the rest.
set -euo pipefail
mkdir -p "${1:?wanted: bash tools/transfer_study.sh OUT [SCAN]}"
OUT="$(cd "$1" && pwd)"
SCAN=()
SIZE=256,256,160
if [ -n "${2:-}" ]; then
  SCAN=(--from "$(realpath "$2")")
  SIZE=160,160,96
fi
source "$(dirname "$0")/venv.sh"

: "${PATIENTS:=80}"         # to pre-train on
: "${PATIENT_FLAGS:=}"      # how they are made
: "${TARGET_PATIENTS:=100}"  # of the target tasks: 50 train, 20 validation
: "${TARGET_FLAGS:=}"
: "${WORDS:=32}"
: "${RESTORATION_EPOCHS:=96}"  # of parts of cubes; 16 gained nothing
: "${WORDS_EPOCHS:=8}"      # of whole cubes: parts tell no words
: "${BOTH_EPOCHS:=2}"       # of whole cubes, after restoration only
: "${ELASTIC:=0}"           # perturb.elastic_probability
: "${DECORRELATION:=3e-3}"  # train.decorrelation_weight of pre-training
: "${CANDIDATE_EPOCHS:=10}"
: "${CANDIDATE_RATES:=4e-3,1.5e-2}"  # a run takes the best in validation
: "${NODULE_EPOCHS:=15}"
: "${NODULE_RATES:=1e-2}"
: "${SEEDS:=5}"
: "${FRACTIONS:=0.1,1}"     # of the labels
: "${FILTERS:=4}"           # of the first convolution

# Later commands find what is there by its folder alone.
SETTINGS="$(declare -p SCAN SIZE PATIENTS PATIENT_FLAGS TARGET_PATIENTS \
  TARGET_FLAGS WORDS RESTORATION_EPOCHS WORDS_EPOCHS BOTH_EPOCHS ELASTIC \
  DECORRELATION FILTERS)"
if [ -e "$OUT/settings" ] && [ "$(cat "$OUT/settings")" != "$SETTINGS" ]; then
  echo "error: $OUT holds patients and networks of other settings (see" \
    "$OUT/settings): give these, or another folder" >&2
  exit 1
fi
printf '%s\n' "$SETTINGS" > "$OUT/settings"

_make_patients() {
  local name="$1"
  shift
  [ -d "$OUT/$name" ] || python tools/make_phantom.py --out "$OUT/$name" \
    "${SCAN[@]}" --size "$SIZE" "$@"
}

_build() {
  tfds build "$1" --imports "beam_jobs.$1" --manual_dir "$OUT/$2" \
    --data_dir "$OUT/data" --config "$3"
}

_pretrain() {
  local name="$1" file="$2" network="$3" epochs="$4"
  shift 4
  python -m transvw_tf2.train --gin_file "gin/runs/$file.gin" \
    --gin_param "$network.base_filters = $FILTERS" \
    --gin_param 'train.batch_size = 8' \
    --gin_param "train.epochs = $epochs" \
    --gin_param 'train.schedule = @CosineDecay' \
    --gin_param "CosineDecay.epochs = $epochs" \
    --gin_param "train.decorrelation_weight = $DECORRELATION" \
    --data "$OUT/data/transvw_luna16" --workdir "$OUT/$name" "$@"
}

# Without quotes: spaces part the flags.
_make_patients patients --scans "$PATIENTS" --seed 704 --nodules 1,4 \
  $PATIENT_FLAGS
_make_patients target_patients --scans "$TARGET_PATIENTS" --seed 518 \
  --nodules 3,6 --diameter 3,8 --attached 0.5 --detected_candidates \
  $TARGET_FLAGS
_build transvw_luna16 patients "{\"name\": \"study\", \"words\": $WORDS,
  \"instances\": 32, \"frame\": \"lung\", \"seed\": 401,
  \"validation_instances\": 4}"
CUBE='"cube_shape": [24, 24, 16], "extent_mm": [36, 36, 32]'
_build luna16_nodules target_patients "{\"name\": \"candidates\", $CUBE,
  \"task\": \"false_positive_reduction\", \"negatives_per_positive\": null}"
_build luna16_nodules target_patients "{\"name\": \"nodules\", $CUBE,
  \"task\": \"nodule_segmentation\", \"jitter_mm\": 8}"
RESTORE=(--gin_param "perturb.elastic_probability = $ELASTIC")
_pretrain words words_only word_classifier "$WORDS_EPOCHS"
_pretrain restoration restoration_only unet3d "$RESTORATION_EPOCHS" \
  "${RESTORE[@]}" \
  --gin_param 'Restore.crop = (32, 32, 16)'
_pretrain both quickstart visual_word_net "$BOTH_EPOCHS" "${RESTORE[@]}" \
  --gin_param "train.start_from = '$OUT/restoration'"
python tools/transfer_study.py --output "$OUT/study" \
  --data "candidates=$OUT/data/luna16_nodules/candidates" \
  --data "nodules=$OUT/data/luna16_nodules/nodules" \
  --init "words=$OUT/words" --init "restoration=$OUT/restoration" \
  --init "both=$OUT/both" --fractions "$FRACTIONS" --seeds "$SEEDS" \
  --processes 2 \
  --learning_rates "candidates=$CANDIDATE_RATES" \
  --learning_rates "nodules=$NODULE_RATES" \
  --gin_param "classifier.base_filters = $FILTERS" \
  --gin_param "unet3d.base_filters = $FILTERS" \
  --gin_param 'train.batch_size = 4' \
  --gin_param 'train.cache = "memory"' \
  --gin_param 'train.steps_per_call = 5' \
  --gin_param 'train.batch_norm_momentum = 0.9' \
  --gin_param 'train.schedule = @CosineDecay' \
  --gin_param "candidates:train.epochs = $CANDIDATE_EPOCHS" \
  --gin_param "candidates:CosineDecay.epochs = $CANDIDATE_EPOCHS" \
  --gin_param 'candidates:Classification.mirror = "xyz"' \
  --gin_param 'candidates:train.best_metric = "auc"' \
  --gin_param 'candidates:classifier.centre_features = True' \
  --gin_param "nodules:train.epochs = $NODULE_EPOCHS" \
  --gin_param "nodules:CosineDecay.epochs = $NODULE_EPOCHS" \
  --gin_param 'nodules:Segmentation.mirror = "xyz"'
