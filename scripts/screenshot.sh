#!/usr/bin/env bash
# Take the pictures of a run's report for the README: scripts/screenshot.sh RUN FOLDER [WIDTH HEIGHT]
# Writes FOLDER/report-light.png and FOLDER/report-dark.png. Needs chromium (Debian: apt-get install chromium).
set -euo pipefail

page=$(realpath "${1:?RUN}/report/index.html")
folder=${2:?FOLDER}
size=${3:-1180},${4:-1500}
browser=$(command -v chromium || command -v google-chrome) || {
    echo "screenshot: found neither chromium nor google-chrome" >&2
    exit 5
}
mkdir -p "$folder"
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

shoot() { # shoot NAME [more flags]
    local name=$1
    shift
    "$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
        --disable-component-update --disable-sync --hide-scrollbars --user-data-dir="$profile/$name" \
        --window-size="$size" --screenshot="$folder/$name.png" "$@" "file://$page" 2>/dev/null
    echo "screenshot: $folder/$name.png"
}

shoot report-light
shoot report-dark --force-dark-mode --blink-settings=preferredColorScheme=0
