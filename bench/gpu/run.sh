#!/bin/sh
# Tries flashattn on a machine with an NVIDIA GPU. Needs a driver and nothing else; see README.md beside this file.
#
#   ./run.sh [quick | full | bench | <step> ...]
#
# Steps: conformance, verify, sanitizer, bench, torch. `quick` is conformance and a part of verify, `full` (the default)
# is all of them within $BUDGET seconds (540), `bench` is bench and torch. A step that fails does not stop later ones.
# Results go to the folder $OUT (results). Exit code: 0 all passed, 1 some failed, 2 bad arguments, 3 no usable GPU.

steps='conformance verify sanitizer bench torch'
skipped=77

here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-results}
BUDGET=${BUDGET:-540}
CHECKS=${CHECKS:---group properties --cases 3} # of verify, under the sanitizer
began=$(date +%s)

usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

now() {
  echo $(($(date +%s) - began))
}

# The files of this bundle, unpacked once into a folder that is named after what is in it.
unpack() {
  payload=$here/payload.tar.xz
  work=${WORK:-$here/unpacked}/$(cksum <"$payload" | tr ' ' '-')
  [ -e "$work/.complete" ] && return
  xz=xz
  command -v xz >/dev/null || xz="env LD_LIBRARY_PATH=$here/xz $here/xz/xz"
  mkdir -p "$work" && $xz -dc "$payload" | tar -xf - -C "$work" && : >"$work/.complete"
}

# limited <seconds> <command> ...: no longer than that, nor than what is left of the budget.
limited() {
  seconds=$1
  shift
  left=$((BUDGET - $(now)))
  [ "$left" -lt "$seconds" ] && seconds=$left
  if [ "$seconds" -le 0 ]; then
    echo "there is no time left for: $*"
    return 1
  fi
  if ! command -v timeout >/dev/null; then
    "$@"
    return
  fi
  timeout -k 10 "$seconds" "$@"
  code=$?
  [ "$code" -eq 124 ] && echo "stopped after $seconds s: $*"
  return "$code"
}

run_node() {
  seconds=$1
  shift
  (cd "$work" && limited "$seconds" ./bin/node "$@")
}

conformance() {
  limited 60 "$work/conformance" --compare "$work/emulator.bin" --write "$OUT/conformance.bin"
}

verify() {
  run_node 300 build/device/verify.js --device cuda --golden vectors --json "$OUT/verify.json" $quick
}

find_sanitizer() {
  command -v compute-sanitizer && return
  [ -x /usr/local/cuda/bin/compute-sanitizer ] && echo /usr/local/cuda/bin/compute-sanitizer
}

# One tool of compute-sanitizer on small grids: the wrappers one by one, then attention.
check_with() {
  check="limited 90 $sanitizer --tool $1 --error-exitcode 9 --print-limit 20"
  $check "$work/conformance" && (cd "$work" && $check ./bin/node build/device/verify.js --device cuda $CHECKS)
}

sanitizer() {
  if ! sanitizer=$(find_sanitizer); then
    echo 'compute-sanitizer is not on the PATH, nor in /usr/local/cuda/bin'
    return $skipped
  fi
  failures=0
  for tool in memcheck racecheck synccheck initcheck; do
    if check_with "$tool" >"$OUT/.sanitizer" 2>&1; then
      echo "$tool: pass"
    else
      echo "$tool: FAIL, its last lines:"
      tail -n 40 "$OUT/.sanitizer"
      failures=$((failures + 1))
    fi
  done
  rm -f "$OUT/.sanitizer"
  [ "$failures" -eq 0 ]
}

bench() {
  run_node 180 build/bench/gpu.js --device cuda --json "$OUT/bench.json"
}

torch() {
  if ! python3 -c 'import torch' 2>/dev/null; then
    echo 'python3 has no torch'
    return $skipped
  fi
  left=$((BUDGET - $(now) - 40))
  [ "$left" -gt 240 ] && left=240
  limited 400 python3 "$work/torch_baseline.py" --json "$OUT/torch.json" --seconds "$left"
  code=$?
  # What has been measured until then counts.
  if [ -e "$OUT/bench.json" ] && [ -e "$OUT/torch.json" ]; then
    echo
    run_node 20 build/bench/merge.js "$OUT/bench.json" "$OUT/torch.json" "$OUT/comparison.json" || code=$?
  fi
  return "$code"
}

# Everything that a step prints goes to the log too.
run_step() {
  printf '\n== %s ==\n' "$1" | tee -a "$OUT/log.txt"
  start=$(now)
  {
    "$1" 2>&1
    echo $? >"$OUT/.code"
  } | tee -a "$OUT/log.txt"
  code=$(cat "$OUT/.code")
  rm -f "$OUT/.code"
  case $code in
    0) result=pass ;;
    "$skipped") result=skipped ;;
    *) result=fail failed=1 ;;
  esac
  seconds=$(($(now) - start))
  summary="$summary$(printf '%-12s %-8s %4d s' "$1" "$result" "$seconds")
"
  json="$json${json:+,}
    \"$1\": { \"result\": \"$result\", \"code\": $code, \"seconds\": $seconds }"
}

require_gpu() {
  probe="import { status } from 'flashattn';
    try {
      const { name, computeCapability, driver, reasons } = status('cuda');
      console.log(name + ', compute capability ' + computeCapability + ', driver for CUDA ' + driver);
    } catch (error) {
      console.log(error.message);
      process.exitCode = 3;
    }"
  if ! device=$(cd "$work" && ./bin/node --input-type=module --eval "$probe" 2>&1); then
    echo "There is no usable GPU, so nothing was run: $device"
    echo 'This bundle needs an NVIDIA GPU of compute capability 8.0 or later and a driver for CUDA 13.'
    exit 3
  fi
}

quick=
case ${1:-full} in
  quick) chosen='conformance verify' quick=--quick ;;
  full) chosen=$steps ;;
  bench) chosen='bench torch' ;;
  *) chosen=$* ;;
esac
for step in $chosen; do
  case " $steps " in
    *" $step "*) ;;
    *)
      usage
      exit 2
      ;;
  esac
done

mkdir -p "$OUT" || exit 1
OUT=$(cd "$OUT" && pwd)
unpack || {
  echo 'the bundle could not be unpacked; WORK=<folder> names another place for it'
  exit 1
}
export FLASHATTN_ADDON="$work/flashattn.node"
require_gpu
echo "$device" | tee "$OUT/log.txt"

failed=0 summary='' json=''
for step in $chosen; do run_step "$step"; done

printf '\n%s\n%s' "$device" "$summary" | tee -a "$OUT/log.txt"
cat >"$OUT/summary.json" <<END
{
  "device": "$device",
  "date": "$(date -u +%Y-%m-%dT%H:%M:%SZ)",
  "steps": {$json
  }
}
END
echo "results are in $OUT"
exit $failed
