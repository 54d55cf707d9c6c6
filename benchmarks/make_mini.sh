#!/usr/bin/env bash
# Makes a `mini` for all suites on one host with GPUs: demonstrations, corrections of what a pilot gets into (DAgger), the
# policy, its gate, the evaluation on canonical initial states, and the measurements for docs/results.md.
#
#   bash benchmarks/make_mini.sh OUT              # from nothing: a pilot is trained on the first demonstrations
#   PILOT=mini bash benchmarks/make_mini.sh OUT   # the pilot is a policy that exists, and the demonstrations are more
#
# Stages take the seconds below, which fit 4 GPUs and 64 cores; give more where there are fewer. A finished stage
# (OUT/done) is not done again: the same command goes on. OUT/status tells what was done when, OUT/log holds the output.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?usage: bash benchmarks/make_mini.sh OUT}")

PYTHON=${PYTHON:-.venv/bin/python}
DEVICE=${DEVICE:-cuda}
GPUS=${GPUS:-$(nvidia-smi -L | wc -l)}
WORKERS=${WORKERS:-$(($(env -u OMP_NUM_THREADS nproc) - 6))} # nproc counts OMP_NUM_THREADS where it is set
PILOT=${PILOT:-}                    # shipped name or directory; none: one is trained
PILOT_AFTER=${PILOT_AFTER:-100}     # s of collecting before the pilot is trained; collecting goes on meanwhile
PILOT_SECONDS=${PILOT_SECONDS:-200} # of training, compilation included, which takes long beside the collection
DAGGER_SECONDS=${DAGGER_SECONDS:-700} # of collecting with the pilot; where it exists, of all collecting
# About 20 passes over the demonstrations: with 60 the main head gained a little on held-out episodes, while the draft
# agreed with it less (measured before training drew the two together). Compilation included: 80 s, where no pilot was trained before.
TRAIN_SECONDS=${TRAIN_SECONDS:-300}
BATCH=${BATCH:-$((512 * GPUS))}
SEED=${SEED:-1000}       # of the first placement; others for a PILOT that has learned from these
EPISODES=${EPISODES:-16} # calibration rollouts per task
TRIALS=${TRIALS:-20}     # evaluated initial states per task
EXIT_STEPS=${EXIT_STEPS:-500}
ABLATION_TRIALS=${ABLATION_TRIALS:-2}
TRAIN_ARGUMENTS=${TRAIN_ARGUMENTS:-} # of rsd train, further ones
# suite, tasks and per cent of the workers: libero_10's episodes are the longest and need the most
PLAN=${PLAN:-"libero_10 0-4 20
libero_10 5-9 20
libero_goal 0-4 14
libero_goal 5-9 14
libero_spatial 0-9 16
libero_object 0-9 16"}

# for collecting: what is hard needs more, and libero_object is solved from every canonical state
COLLECT_PLAN=${COLLECT_PLAN:-"libero_10 0-4 23
libero_10 5-9 23
libero_goal 0-4 18
libero_goal 5-9 13
libero_spatial 0-9 15
libero_object 0-9 8"}

trap 'echo "make_mini: this stage failed, see $out/log; the same command does it again" >&2' ERR
mkdir -p "$out/log" "$out/done"
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$out/inductor} PYTHONUNBUFFERED=1

say() { echo "$(date -u +%H:%M:%S) $*" | tee -a "$out/status"; }
rsd() { "$PYTHON" -m rsd_policy.cli "$@"; }
demonstrations() { find "$out/demos" -name '*.hdf5' 2>/dev/null | wc -l; }

# all_end_well PID...
all_end_well() {
    local pid status
    for pid in "$@"; do
        status=0
        wait "$pid" || status=$?
        [ $status -eq 0 ] || { say "a command ended with $status, see $out/log" && return 1; }
    done
}

# of_plan NAME COMMAND...: the command for every line of the plan at once, each on one GPU with its share of the workers
of_plan() {
    local name=$1 line=0 suite tasks share pids=()
    shift
    while read -r suite tasks share; do
        CUDA_VISIBLE_DEVICES=$((line % GPUS)) "$@" --task-suite "$suite" --tasks "$tasks" \
            --workers $((WORKERS * share / 100 > 0 ? WORKERS * share / 100 : 1)) \
            >"$out/log/$name-$suite-$tasks.log" 2>&1 &
        pids+=($!)
        line=$((line + 1))
    done <<<"$PLAN"
    all_end_well "${pids[@]}"
}

# for_seconds SECONDS COMMAND...: an interrupt by the clock (status 130) is its ordinary end
for_seconds() { timeout --preserve-status -s INT "$@" || [ $? -eq 130 ]; }

# collect NAME SECONDS FIRST_SEED [arguments]
collect() {
    local name=$1 seconds=$2 seed=$3
    shift 3
    PLAN=$COLLECT_PLAN of_plan "$name" for_seconds "$seconds" "$PYTHON" -m rsd_policy.cli collect --demos 2000 \
        --seed "$seed" --out "$out/demos" "$@"
}

# train DIRECTORY SECONDS
train() {
    say "train $1 for $2 s on $(demonstrations) demonstrations"
    OMP_NUM_THREADS=4 "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS" \
        -m rsd_policy.commands.train --data "$out/demos" --out "$out/$1" --seconds "$2" --batch-size "$BATCH" \
        --device "$DEVICE" --held-out 0.02 --oversample libero_10:{0..9} $TRAIN_ARGUMENTS >"$out/log/train-$1.log" 2>&1
}

# once STAGE COMMAND...
once() {
    local stage=$1
    shift
    [ -e "$out/done/$stage" ] && return
    "$@"
    touch "$out/done/$stage"
    say "done: $stage, $(demonstrations) demonstrations"
}

dagger() { collect dagger "$DAGGER_SECONDS" $((SEED + 19000)) --policy "${PILOT:-$out/pilot}" --device "$DEVICE"; }

demonstrate() {
    local all=$WORKERS
    if [ -n "$PILOT" ]; then
        WORKERS=$((all / 2)) collect first "$DAGGER_SECONDS" "$SEED" &
        local collecting=$!
        WORKERS=$((all - all / 2)) dagger
    else
        collect first $((PILOT_AFTER + PILOT_SECONDS + 40)) "$SEED" &
        local collecting=$!
        sleep "$PILOT_AFTER"
        train pilot "$PILOT_SECONDS"
    fi
    all_end_well $collecting
}

rollouts() {
    of_plan rollouts "$PYTHON" -m rsd_policy.cli calibrate --policy "$out/mini" --episodes "$EPISODES" \
        --device "$DEVICE" --rollouts "$out/rollouts" --rollouts-only
}

# every rollout is there: this call records none
gate() {
    OMP_NUM_THREADS=4 rsd calibrate --policy "$out/mini" --episodes 1 --task-suite libero_spatial --tasks 0 --workers 1 \
        --alpha 0.1 --device "$DEVICE" --rollouts "$out/rollouts" --out "$out/mini-gated" >"$out/log/calibrate.log" 2>&1
}

# of_suites NAME COMMAND...: as of_plan, for each suite once; the command ends with an option for OUT/SUITE-NAME
of_suites() {
    local name=$1 gpu=0 suite share pids=()
    shift
    while read -r suite share; do
        CUDA_VISIBLE_DEVICES=$((gpu % GPUS)) "$@" "$out/$suite-$name" --task-suite "$suite" --tasks "${TASKS:-0-9}" \
            --workers $((WORKERS * share / 100 > 0 ? WORKERS * share / 100 : 1)) >"$out/log/$name-$suite.log" 2>&1 &
        pids+=($!)
        gpu=$((gpu + 1))
    done < <(awk '{ share[$1] += $3 } END { for (suite in share) print suite, share[suite] }' <<<"$PLAN" | sort)
    all_end_well "${pids[@]}"
}

# evaluate MODE
evaluate() {
    of_suites "$1" rsd eval --num-trials "$TRIALS" --mode "$1" --policy "$out/mini-gated" --no-ros --device "$DEVICE" --out
}

# of every sixth demonstration: one process holds them all
exit_layer() {
    local number=0 file
    while read -r file; do
        number=$((number + 1))
        [ $((number % 6)) -eq 0 ] || continue
        mkdir -p "$out/sixth/$(dirname "$file")"
        ln -f "$out/demos/$file" "$out/sixth/$file"
    done < <(cd "$out/demos" && find . -name '*.hdf5' | sort)
    CUDA_VISIBLE_DEVICES=$((GPUS - 1)) OMP_NUM_THREADS=4 "$PYTHON" -m benchmarks.ablations.exit_layer --policy "$out/mini-gated" \
        --data "$out/sixth" --device "$DEVICE" --measure acceptance --layers 1-6 --steps "$EXIT_STEPS" \
        --json "$out/exit_layer.json" >"$out/log/exit_layer.log" 2>&1
}

ablations() {
    of_suites ablations.json "$PYTHON" -m benchmarks.ablations --policy "$out/mini-gated" --num-trials "$ABLATION_TRIALS" \
        --device "$DEVICE" --json
}

once first demonstrate
[ -n "$PILOT" ] || once dagger dagger
once train train mini "$TRAIN_SECONDS"
once rollouts rollouts
once gate gate
once exit_layer exit_layer &
measuring=$!
for mode in speculative gated baseline; do once "$mode" evaluate "$mode"; done
all_end_well $measuring
once ablations ablations
say "made $out/mini-gated; ship it with: ./rsd export --policy $out/mini-gated --out DIR --results $out/libero_*-{speculative,gated,baseline}"
