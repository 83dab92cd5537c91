#!/usr/bin/env bash
# Called by check.sh inside a mount namespace: serves from $ROOT, mounted read-only, and uses the service.
set -euo pipefail

mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0755 tmpfs "$ROOT/data"
mount -o remount,ro,bind "$ROOT"
cp docker/try_service.py "$ROOT/tmp/"

# As the image's user, in the image's environment; the device is the processor whatever the image is for.
become() {
    exec chroot --userspec=10001:10001 "$ROOT" \
        sh -c "cd /data && exec env -i $ENVIRONMENT ACORN_PORT=$PORT ACORN_HOST=127.0.0.1 ACORN_JOB_DEVICE=cpu $1"
}
inside() { (become "$1"); }

if inside "touch /opt/acorn/probe" 2>/dev/null; then
    echo "the root is not read-only" >&2
    exit 1
fi
become "$COMMAND" &
server=$!

for _ in $(seq 120); do
    inside "$HEALTH" 2>/dev/null && break
    kill -0 "$server" || { echo "the service stopped" >&2; exit 1; }
    sleep 1
done
inside "$HEALTH"
echo "the image's health check passes"
inside "python /tmp/try_service.py http://127.0.0.1:$PORT"

kill "$server"
for _ in $(seq 35); do kill -0 "$server" 2>/dev/null || break; sleep 1; done
if kill -0 "$server" 2>/dev/null; then
    echo "the service does not stop" >&2
    exit 1
fi
wait "$server" || [[ $? == 143 ]]  # 143: by SIGTERM, after all was done
echo "SIGTERM ends it"
