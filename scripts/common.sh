# Sourced by the scripts beside it: messages, and system packages where they may be installed.
# shellcheck shell=bash

say() { echo "setup: $*"; }

fail() {
    echo "setup: $*" >&2
    exit 1
}

# install_packages WHAT PACKAGE...: install Debian packages when permitted; otherwise print the command and return 1.
install_packages() {
    local what=$1
    shift
    local -a as_root=()
    if [[ $(id -u) -ne 0 ]]; then as_root=(sudo); fi
    local command="${as_root[*]} apt-get install $*"
    command=${command# }
    if ! command -v apt-get >/dev/null; then
        say "$what is missing. Install it with your system's package manager (on Debian: apt-get install $*)." >&2
        return 1
    fi
    if [[ ${APT:-yes} == no ]]; then
        say "$what is missing, and APT=no forbids to install it. Run: $command" >&2
        return 1
    fi
    if [[ ${#as_root[@]} -gt 0 ]] && ! sudo -n true 2>/dev/null; then
        say "$what is missing, and installing it needs root. Run: $command" >&2
        return 1
    fi
    say "$what is missing: installing $* with apt-get"
    local log
    log=$(mktemp)
    if ! { "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=120 update &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=120 \
            install --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        say "apt-get could not install $what. Run: $command" >&2
        return 1
    fi
    rm -f "$log"
}
