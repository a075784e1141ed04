#!/usr/bin/env bash
# Build the wheel, install it alone into a fresh environment, and use it away from the checkout: what a user gets from
# `pip install tinykd` must find its boards and firmware, and plan a model without torch.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
VENV=${VENV:-.venv}
say() { echo "wheel-test: $*"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "building"
"$VENV/bin/python" -m build --wheel --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$work"/dist/tinykd-*.whl)
"$VENV/bin/python" scripts/check_wheel.py "$wheel"

say "installing $(basename "$wheel") into a fresh environment, base dependencies only"
"$VENV/bin/python" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check -c constraints.txt "$wheel"

cd "$work"
tinykd() { "$work/venv/bin/tinykd" "$@"; }
tinykd --version
tinykd list boards
"$work/venv/bin/python" "$root/scripts/make_tiny_model.py" tiny.tflite
tinykd plan tiny.tflite --board nucleo-f746
if command -v arm-none-eabi-gcc >/dev/null; then
    tinykd build tiny.tflite --board nucleo-f746 --builder gcc
else
    say "skipped building firmware from the wheel: arm-none-eabi-gcc is missing"
fi
tinykd doctor --json >doctor.json
"$work/venv/bin/python" - <<'CHECK'
import json, sys
import tinykd
assert "site-packages" in tinykd.__file__, tinykd.__file__
assert "torch" not in sys.modules
report = json.load(open("doctor.json"))
assert report["ok"] is True, report
CHECK
say "ok"
