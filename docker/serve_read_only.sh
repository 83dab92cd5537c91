#!/usr/bin/env bash
# Called by check.sh inside a mount namespace: serves from $ROOT, mounted read-only, and asks it.
set -euo pipefail

mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0755 tmpfs "$ROOT/data"
mount -o remount,ro,bind "$ROOT"

inside() {
    chroot --userspec=10001:10001 "$ROOT" \
        env -i PATH=/opt/acorn/bin:/usr/bin:/bin HOME=/data PYTHONUNBUFFERED=1 \
        ACORN_ADMIN_KEY=0123456789abcdef0123456789abcdef \
        sh -c "cd /data; $1"
}

if inside "touch /opt/acorn/probe" 2>/dev/null; then
    echo "the root is not read-only" >&2
    exit 1
fi
inside "exec $COMMAND" &
server=$!

ask() { inside "python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:$PORT$1').read()[:300].decode())\""; }
for _ in $(seq 60); do
    ask /healthz 2>/dev/null && break
    kill -0 "$server" || { echo "the service stopped" >&2; exit 1; }
    sleep 1
done
ask /healthz
ask / | grep -qi '<!doctype html'
echo "/healthz and the page answered"
kill "$server"
wait "$server" || true
