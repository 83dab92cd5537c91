#!/usr/bin/env bash
# docker/check.sh [cpu|gpu]: builds the Dockerfile without a container engine and proves that the image works.
#
# Needs root, buildah and debootstrap (Debian: apt install buildah debootstrap). The base image is imported
# from debootstrap. The service runs as the image's user with a read-only root; the image's own health check
# must pass, and a picture is uploaded, fitted, viewed and downloaded through it (docker/try_service.py). The
# image for GPUs is tried on the processor; that its kernels run on a GPU is not checked here.
#
# This machine's pip configuration reaches the build as a secret and read-only mounts; nothing of it stays in
# the image. Where the image for GPUs needs another one:
#   ACORN_DOCKER_LEAVE_OUT   options of pip's configuration not to pass on, such as "find-links constraint"
#   ACORN_DOCKER_MOUNTS      further paths that the build may read
#   ACORN_DOCKER_ARGUMENTS   further options for buildah, such as "--build-arg CUDA_ARCHITECTURES=90"
#   ACORN_DOCKER_WORK        a folder to keep the base system in
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-cpu}
work=${ACORN_DOCKER_WORK:-$(mktemp -d)}
base=localhost/acorn-base
image=localhost/acorn:$target
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
work, ca, left_out = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3].split()
items = dict(re.match(r"[^.]*\.([^=]+)=\x27(.*)\x27", line).groups() for line in sys.stdin)
items = {key: value for key, value in items.items() if key not in left_out}
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
' "$work" "$ca_inside" "${ACORN_DOCKER_LEAVE_OUT:-}"
    local path
    for path in ${ACORN_DOCKER_MOUNTS:-}; do echo "--volume=$path:$path:ro"; done
}

build_image() {
    local mounts
    mapfile -t mounts < <(write_secrets)
    say "Building the image $image"
    # shellcheck disable=SC2086  # several options in one variable
    buildah build --isolation chroot --pull-never --format docker --layers --target "$target" \
        --build-arg "BASE_IMAGE=$base" ${ACORN_DOCKER_ARGUMENTS:-} \
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

# A list of words in JSON, as a shell reads it.
as_words() { python3 -c 'import json, shlex, sys; print(shlex.join(json.loads(sys.argv[1])))' "$1"; }

# In a mount namespace of its own: the root read-only, /data and /tmp writable, nothing else.
serve_and_use() {
    local container root health
    container=$(buildah from --pull-never "$image")
    root=$(buildah mount "$container")
    trap "buildah rm $container >/dev/null" EXIT
    health=$(configured Healthcheck | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["Test"][1:]))')
    ROOT=$root PORT=$port ENVIRONMENT="$(as_words "$(configured Env)")" \
        COMMAND="$(as_words "$(configured Cmd)")" HEALTH="$(as_words "$health")" \
        unshare --mount --pid --fork --kill-child bash docker/serve_read_only.sh
}

import_base_image
build_image
expect User 10001
expect Volumes /data
say "Serving from it, as its user, with a read-only root"
serve_and_use
say "The image works: $(buildah images --format '{{.Size}}' "$image")"
