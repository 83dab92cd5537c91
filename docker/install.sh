#!/bin/sh
# docker/install.sh FOLDER [EXTRA]: a virtual environment, new or not, with the wheel in dist/ and what it needs.
set -eu
folder=$1
extra=${2:+[$2]}
python3 -m venv "$folder"
"$folder/bin/python" -m pip install -q -c constraints.txt "$(echo dist/acorn_svc-*.whl)$extra"
"$folder/bin/python" -m compileall -q "$folder"/lib/python3*/site-packages/acorn_svc
