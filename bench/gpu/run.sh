#!/bin/sh
# Tries flashattn on a machine with an NVIDIA GPU. Needs a driver and nothing else; see README.md beside this file.
#
#   ./run.sh <1 | 2 | 3 | step ...>
#
# 1, 2 and 3 are visits that each stay within ten minutes. Results go to the folder $OUT (results), as they come.
# Exit code: 0 all passed, 1 some failed, 2 bad arguments, 3 no usable GPU.

here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-results}

# The files of this bundle, unpacked once into a folder that is named after what is in it.
unpack() {
  payload=$here/payload.tar.xz
  work=${WORK:-$here/unpacked}/$(cksum <"$payload" | tr ' ' '-')
  [ -e "$work/.complete" ] && return
  xz=xz
  command -v xz >/dev/null || xz="env LD_LIBRARY_PATH=$here/xz $here/xz/xz"
  mkdir -p "$work" && $xz -dc "$payload" | tar -xf - -C "$work" && : >"$work/.complete"
}

require_gpu() {
  probe="import { status } from 'flashattn';
    try {
      const { name, computeCapability, driver, multiprocessors } = status('${DEVICE:-cuda}');
      console.log(name + ', compute capability ' + computeCapability + ', ' + multiprocessors + ' multiprocessors, driver for CUDA ' + driver);
    } catch (error) {
      console.log(error.message);
      process.exitCode = 3;
    }"
  if ! device=$(./bin/node --input-type=module --eval "$probe" 2>&1); then
    echo "There is no usable GPU, so nothing was run: $device"
    echo 'This bundle needs an NVIDIA GPU of compute capability 9.0 and a driver for CUDA 13.'
    exit 3
  fi
  echo "$device"
}

if [ $# -eq 0 ]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 2
fi
mkdir -p "$OUT" || exit 1
OUT=$(cd "$OUT" && pwd)
unpack || {
  echo 'the bundle could not be unpacked; WORK=<folder> names another place for it'
  exit 1
}
cd "$work" || exit 1
export FLASHATTN_ADDON="${FLASHATTN_ADDON:-$work/flashattn.node}"
export PATH="$PATH:/usr/local/cuda/bin"
require_gpu
exec ./bin/node build/bench/visit.js --out "$OUT" --device "${DEVICE:-cuda}" "$@"
