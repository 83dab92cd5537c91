#!/bin/sh
# docker/shrink.sh FOLDER: removes from a virtual environment what only builds and tests need.
set -eu
cd "$1"/lib/python3*/site-packages
rm -rf torch/include torch/test torch/share
find torch/bin -type f ! -name torch_shm_manager -delete
find . -name '*.a' -delete
"$1/bin/python" -m pip uninstall -qy pip setuptools
