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
mkdir -p "$1"
OUT="$(cd "$1" && pwd)"
SCAN=()
SIZE=160,160,112
if [ -n "${2:-}" ]; then
  SCAN=(--from "$(realpath "$2")")
  SIZE=160,160,96
fi
source "$(dirname "$0")/venv.sh"

: "${PATIENTS:=120}"        # to pre-train on
: "${PATIENT_FLAGS:=}"      # how they are made
: "${TARGET_PATIENTS:=100}"  # of the target tasks: 50 train, 20 validation
: "${TARGET_FLAGS:=}"
: "${EXTENT:=48,48,40}"     # of the cubes of the target tasks, mm
: "${JITTER:=8}"           # of nodules around the middle of a cube, mm
: "${DIAMETER:=5,16}"      # of the nodules of the target tasks, mm
: "${WORDS:=32}"
: "${VALIDATION_INSTANCES:=8}"  # a word
: "${PRETRAINING_EPOCHS:=5}"
: "${WORDS_EPOCHS:=$PRETRAINING_EPOCHS}"  # of words only
: "${BOTH_EPOCHS:=$PRETRAINING_EPOCHS}"   # of both
: "${CROP:=None}"           # of pre-training, such as '(32, 32, 16)'
: "${WORDS_CROP:=$CROP}"    # of words only: small parts tell no words
: "${BOTH_CROP:=$CROP}"     # of both
: "${DECAY_EPOCHS:=}"       # of restoration, halve the learning rate
: "${BOTH_DECAY_EPOCHS:=$DECAY_EPOCHS}"  # of both
: "${DECORRELATION:=0}"     # train.decorrelation_weight of pre-training
: "${ELASTIC:=1}"           # perturb.elastic_probability of restoration, both
: "${BOTH_FROM:=}"          # words or restoration: both goes on from it
: "${CANDIDATE_EPOCHS:=8}"
: "${CANDIDATE_RATES:=1e-3,4e-3}"  # a run takes the best in validation
: "${CENTRE_FEATURES:=True}"  # of the classifier of candidates
: "${NODULE_EPOCHS:=18}"
: "${NODULE_RATES:=3e-3,1e-2}"
: "${SEEDS:=5}"
: "${FRACTIONS:=0.1,0.5,1}"
: "${NODULE_MIRROR:=}"      # axes along which cubes of nodules are mirrored
: "${FILTERS:=4}"           # of the first convolution

_make_patients() {
  local name="$1"
  shift
  [ -d "$OUT/$name" ] || python tools/make_phantom.py --out "$OUT/$name" \
    "${SCAN[@]}" --size "$SIZE" --nodules 3,6 "$@"
}

_build() {
  tfds build "$1" --imports "beam_jobs.$1" --manual_dir "$OUT/$2" \
    --data_dir "$OUT/data" --config "$3"
}

_pretrain() {
  local name="$1" file="$2" task="$3" epochs="$4" crop="$5" decay="$6"
  shift 6
  if [ -n "$decay" ]; then
    set -- "$@" --gin_param 'train.schedule = @StepDecay' \
      --gin_param "StepDecay.epochs = $decay"
  fi
  python -m transvw_tf2.train --gin_file "gin/runs/$file.gin" \
    --gin_param "visual_word_net.base_filters = $FILTERS" \
    --gin_param "word_classifier.base_filters = $FILTERS" \
    --gin_param "unet3d.base_filters = $FILTERS" \
    --gin_param "$task.crop = $crop" \
    --gin_param 'train.batch_size = 8' \
    --gin_param "train.epochs = $epochs" \
    --gin_param "train.decorrelation_weight = $DECORRELATION" \
    --data "$OUT/data/transvw_luna16" --workdir "$OUT/$name" "$@"
}

# Without quotes: spaces part the flags.
_make_patients patients --scans "$PATIENTS" --seed 401 $PATIENT_FLAGS
_make_patients target_patients --scans "$TARGET_PATIENTS" --seed 403 \
  --diameter "$DIAMETER" $TARGET_FLAGS
_build transvw_luna16 patients "{\"name\": \"study\", \"words\": $WORDS,
  \"instances\": 32, \"frame\": \"lung\", \"seed\": 401,
  \"validation_instances\": $VALIDATION_INSTANCES}"
CUBE='"cube_shape": [24, 24, 16], "extent_mm": ['"$EXTENT"']'
_build luna16_nodules target_patients "{\"name\": \"candidates\", $CUBE,
  \"task\": \"false_positive_reduction\", \"negatives_per_positive\": null}"
_build luna16_nodules target_patients "{\"name\": \"nodules\", $CUBE,
  \"task\": \"nodule_segmentation\", \"jitter_mm\": $JITTER}"
_pretrain words words_only NameWords "$WORDS_EPOCHS" "$WORDS_CROP" ''
RESTORE=(--gin_param "perturb.elastic_probability = $ELASTIC")
_pretrain restoration restoration_only Restore "$PRETRAINING_EPOCHS" "$CROP" \
  "$DECAY_EPOCHS" "${RESTORE[@]}"
START=()
if [ -n "$BOTH_FROM" ]; then
  START=(--gin_param "train.start_from = '$OUT/$BOTH_FROM'")
fi
_pretrain both quickstart Pretrain "$BOTH_EPOCHS" "$BOTH_CROP" \
  "$BOTH_DECAY_EPOCHS" "${RESTORE[@]}" "${START[@]}"
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
  --gin_param "candidates:train.epochs = $CANDIDATE_EPOCHS" \
  --gin_param 'candidates:Classification.mirror = "xyz"' \
  --gin_param 'candidates:train.best_metric = "auc"' \
  --gin_param "candidates:classifier.centre_features = $CENTRE_FEATURES" \
  --gin_param "nodules:train.epochs = $NODULE_EPOCHS" \
  --gin_param "nodules:Segmentation.mirror = '$NODULE_MIRROR'"
