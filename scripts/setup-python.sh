#!/usr/bin/env bash
# Make the virtual environment $VENV and install tinykd into it, editable, with everything and the pinned versions.
# Environment: VENV (default .venv), PYTHON (an interpreter to use), PIP_ARGS (more arguments for pip), APT=no.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

VENV=${VENV:-.venv}

python_suits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

pick_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if command -v "$candidate" >/dev/null && python_suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

if [[ -x $VENV/bin/python ]] && ! python_suits "$VENV/bin/python"; then
    fail "$VENV holds a Python that is not 3.10 to 3.13; remove it: rm -r $VENV"
fi

if [[ ! -x $VENV/bin/pip ]]; then
    if ! python=$(pick_python); then
        [[ -z ${PYTHON:-} ]] || fail "PYTHON=$PYTHON is not a Python 3.10 to 3.13"
        install_packages "Python 3.10 to 3.13" python3 python3-venv || exit 1
        python=$(pick_python) || fail "found no Python 3.10 to 3.13; install one and name it: make setup PYTHON=/path/to/python3.12"
    fi
    # Debian keeps ensurepip in a package of its own; without it `python -m venv` stops half-way.
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        install_packages "Python's venv module" "python$version-venv" || exit 1
    fi
    say "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
fi

say "installing Python packages into $VENV (a few minutes the first time; the log is $VENV/setup.log)"
started=$SECONDS
# Of pip's many lines only the larger downloads are worth a look. PIP_ARGS is split into words on purpose.
# shellcheck disable=SC2086
if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off ${PIP_ARGS:-} \
    -c constraints.txt -e '.[all,dev]' 2>&1 | tee "$VENV/setup.log" |
    { grep --line-buffered -oE '(Downloading|Processing|Installing collected) .*' || true; } |
    { grep --line-buffered -E '\([0-9.]+ (MB|GB)\)|torch-|^Installing' || true; } |
    cut -c 1-100 | sed -u 's/^/       /'; then
    tail -n 25 "$VENV/setup.log" >&2
    fail "pip could not install the packages: see above and $VENV/setup.log"
fi
say "Python packages are ready ($((SECONDS - started)) s)"
