#!/usr/bin/env bash
# Builds the Dockerfile without a container engine and proves that the image serves.
#
# Needs root, buildah and debootstrap (Debian: apt install buildah debootstrap). The base image is
# imported from debootstrap. This machine's pip configuration reaches the build as secrets and
# read-only mounts; nothing of it stays in the image. The service runs as the image's user, with a
# read-only root, and must answer /healthz and the image's own HEALTHCHECK.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${ACORN_DOCKER_WORK:-$(mktemp -d)}
base=localhost/acorn-base
image=localhost/acorn
port=${ACORN_DOCKER_PORT:-18000}
ca_inside=/run/host-ca.crt
mkdir -p "$work"

say() { echo "==> $*"; }

import_base_image() {
    buildah inspect --type image "$base" >/dev/null 2>&1 && return
    say "Making a base image with debootstrap"
    [[ -x $work/base/bin/sh ]] || debootstrap --variant=minbase bookworm "$work/base" >"$work/base.log"
    local container
    container=$(buildah from scratch)
    buildah add -q "$container" "$work/base" / >/dev/null
    buildah commit -q "$container" "$base" >/dev/null
    buildah rm "$container" >/dev/null
}

# Writes pip.conf and npmrc for the build, and prints the mounts they need: one per local path.
write_secrets() {
    python3 -m pip config list | python3 -c '
import pathlib, re, sys
work, ca = pathlib.Path(sys.argv[1]), sys.argv[2]
items = dict(re.match(r"[^.]*\.([^=]+)=\x27(.*)\x27", line).groups() for line in sys.stdin)
certificate = items.get("cert")
local = {w.removeprefix("file://") for v in items.values() for w in v.split() if "/" in w}
local = {p.removesuffix("/simple") for p in local}  # an index on disk points to its neighbours
for path in sorted(p for p in local if p.startswith("/") and p != certificate):
    if pathlib.Path(path).exists():
        print(f"--volume={path}:{path}:ro")
npm = ""
if certificate:
    print(f"--volume={certificate}:{ca}:ro")
    items["cert"], npm = ca, f"cafile={ca}\n"
lines = [f"{key} = {value}" for key, value in items.items()]
(work / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
(work / "npmrc").write_text(npm)
' "$work" "$ca_inside"
}

build_image() {
    local mounts
    mapfile -t mounts < <(write_secrets)
    say "Building the image"
    buildah build --isolation chroot --pull-never --format docker --layers \
        --build-arg "BASE_IMAGE=$base" \
        --secret "id=pip_conf,src=$work/pip.conf" --secret "id=npmrc,src=$work/npmrc" \
        "${mounts[@]}" -t "$image" .
}

# One value of the image's configuration, as JSON.
configured() {
    buildah inspect --type image "$image" | python3 -c '
import json, sys
print(json.dumps(json.load(sys.stdin)["Docker"]["config"].get(sys.argv[1])))' "$1"
}

expect() {
    [[ $(configured "$1") == *"$2"* ]] || { echo "$1 of the image is not $2" >&2; exit 1; }
}

as_words() { python3 -c 'import json, shlex, sys; print(shlex.join(json.loads(sys.argv[1])))' "$1"; }

# In a mount namespace of its own: the root read-only, /data and /tmp writable, nothing else.
serve_and_ask() {
    local container root
    container=$(buildah from --pull-never "$image")
    root=$(buildah mount "$container")
    trap "buildah rm $container >/dev/null" EXIT
    COMMAND="$(as_words "$(configured Cmd)") --port $port" PORT=$port ROOT=$root \
        unshare --mount --pid --fork --kill-child bash docker/serve_read_only.sh
}

import_base_image
build_image
expect User acorn
expect Volumes /data
expect Healthcheck /healthz
say "Serving from it, as user acorn, with a read-only root"
serve_and_ask
say "The image works: $(buildah images --format '{{.Size}}' "$image")"
