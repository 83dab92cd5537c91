#!/usr/bin/env bash
# docker/bare_debian.sh [--bind PATH]... [--env NAME=VALUE]...
#
# Proves that the README's two commands work on a Debian 12 that has python3, venv, git and make and nothing
# else: no compiler, no node. Needs root and debootstrap.
#
# A fresh system is made in a folder, this commit cloned into it, and as a user without privileges `make demo`
# is run until the page answers and the photo is fitted, then the installation part of `make test` and a few
# of its tests. What installers need where packages come through a mirror is given from outside: paths that
# are to be seen inside, read-only, and variables of the environment.
#
#   ACORN_BARE_WORK   a folder that keeps the fresh system for the next time
set -euo pipefail

# Everything that is mounted here goes with a namespace of its own, every process too.
if [[ -z ${ACORN_BARE_INSIDE:-} ]]; then
    ACORN_BARE_INSIDE=yes exec unshare --mount --pid --fork --kill-child "$0" "$@"
fi
cd "$(dirname "$0")/.."

binds=() variables=()
while (($#)); do
    case $1 in
        --bind) binds+=("$2") ;;
        --env) variables+=("$2") ;;
        *) echo "unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done

work=${ACORN_BARE_WORK:-$(mktemp -d)}
fresh=$work/fresh
root=$work/root
user=visitor
home=/home/$user/acorn
mkdir -p "$work"

say() { echo "==> [$((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))] $*"; }

# A command as the user, in the checkout.
inside() {
    chroot --userspec=$user:$user "$root" \
        env -i HOME=/home/$user PATH=/usr/bin:/bin LANG=C.UTF-8 "${variables[@]}" sh -c "cd $home && $1"
}

make_system() {
    if [[ ! -d $fresh ]]; then
        say "Making a fresh Debian 12"
        debootstrap --variant=minbase --include=python3,python3-venv,git,make bookworm "$fresh.new" >"$work/fresh.log"
        mv "$fresh.new" "$fresh"
    fi
    rm -rf "$root"
    cp -a "$fresh" "$root"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    chroot "$root" useradd --create-home $user
    git clone -q --no-hardlinks . "$root$home"
    chroot "$root" chown -R $user:$user $home
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/tmp"
    local path
    for path in "${binds[@]}"; do
        if [[ -d $path ]]; then mkdir -p "$root$path"; else install -D /dev/null "$root$path"; fi
        mount --bind "$path" "$root$path"
        mount -o remount,ro,bind "$root$path"
    done
}

require_bare() {
    local tool
    for tool in cc c++ gcc g++ clang cmake ninja node npm pip pip3; do
        if chroot "$root" sh -c "command -v $tool" >/dev/null; then
            echo "the fresh system has $tool" >&2
            exit 1
        fi
    done
}

# Waits until the demonstration says where it is, and its photo is fitted.
watch_demo() {
    local url=
    while [[ -z $url ]]; do
        kill -0 "$demo" 2>/dev/null || { echo "make demo ended" >&2; exit 1; }
        url=$(sed -n 's/^Acorn is at \(http[^ ]*\)\/ .*/\1/p' "$work/demo.log")
        sleep 1
    done
    say "The page is at $url"
    inside "python3 - $url" <<'PYTHON'
import json, sys, time, urllib.request

def get(path):
    with urllib.request.urlopen(sys.argv[1] + path, timeout=60) as answer:
        return answer.read()

assert b"<script" in get("/"), "the page has not been built"
while (scene := json.loads(get("/scenes"))["items"][0])["status"] in ("queued", "fitting"):
    time.sleep(1)
assert scene["status"] == "ready", scene
assert scene["progress"]["psnr"] > 25, scene
assert get(f"/iiif/{scene['id']}/full/max/0/default.jpg")[:3] == b"\xff\xd8\xff"
print(f"{scene['title']}: {scene['status']}, {scene['progress']['psnr']:.1f} dB in {scene['progress']['seconds']:.0f} s")
PYTHON
}

make_system
require_bare
say "make demo"
set -m  # so that it has a process group
inside "exec make demo" >"$work/demo.log" 2>&1 &
demo=$!
set +m
watch_demo
kill -TERM -- -$demo
wait $demo || true
say "The installation part of make test"
inside "make .venv/stamps/test"
inside ".venv/bin/acorn doctor"
say "Some of its tests"
inside ".venv/bin/python -m pytest -q tests/laws/test_tree.py tests/unit/test_errors.py tests/unit/test_demo.py"
say "Both commands work on a bare Debian 12"
