#!/bin/sh
# Runs a compiler and keeps what it says beside the object that it makes: <object>.log.
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
"$@" 2>"$object.log" || {
  status=$?
  cat "$object.log" >&2
  exit $status
}
