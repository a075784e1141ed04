#!/usr/bin/env bash
# Find the Arm cross compiler and its C library, or install them where that is permitted.
# With --required a missing compiler is an error; without, a note: planning and training work without one.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

required=${1:-}

compiler_works() {
    command -v arm-none-eabi-gcc >/dev/null &&
        echo '#include <string.h>' | arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -E - >/dev/null 2>&1
}

if compiler_works; then
    exit 0
fi
if install_packages "the Arm compiler" gcc-arm-none-eabi libnewlib-arm-none-eabi && compiler_works; then
    say "$(arm-none-eabi-gcc --version | head -n 1) is ready"
    exit 0
fi
if [[ $required == --required ]]; then
    fail "building firmware needs arm-none-eabi-gcc with newlib"
fi
say "going on without the Arm compiler: build, flash and bench will not work until it is there"
