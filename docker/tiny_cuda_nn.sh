#!/bin/sh
# docker/tiny_cuda_nn.sh FOLDER "75 90" [SOURCE]: builds tiny-cuda-nn, at the commit that the extra `tcnn` pins,
# for GPUs of these compute capabilities, and installs it into the virtual environment FOLDER. SOURCE is a
# folder with that commit and its submodules, for machines that cannot reach the repository.
#
# No CUDA toolkit is needed: the compiler comes from PyPI, in the release that PyTorch was built for, and is
# left out of FOLDER. Nor is a GPU.
set -eu
folder=$1
architectures=$(echo "$2" | tr ' ' ',')
python="$folder/bin/python"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

release=$("$python" -c 'import torch; print(torch.version.cuda or "")')
[ -n "$release" ] || { echo "PyTorch was built without CUDA; nothing to build tiny-cuda-nn for" >&2; exit 1; }

# The tools see the packages of FOLDER: PyTorch, and the headers and libraries of CUDA that it brought.
"$python" -m venv --system-site-packages "$tools/venv"
echo "$folder"/lib/python3*/site-packages >"$(echo "$tools"/venv/lib/python3*/site-packages)/folder.pth"
"$tools/venv/bin/python" -m pip install -q 'setuptools<81' wheel ninja
"$tools/venv/bin/python" -m pip install -q --no-deps --target "$tools/packages" \
    "nvidia-cuda-nvcc==$release.*" "nvidia-nvvm==$release.*" "nvidia-cuda-crt==$release.*" \
    "nvidia-cuda-cccl==$release.*"

# One folder that looks like a toolkit: what was just installed, and what PyTorch brought.
cuda="$tools/cuda"
mkdir -p "$cuda/lib64/stubs"
for part in "$folder"/lib/python3*/site-packages/nvidia/cu13 "$tools"/packages/nvidia/cu13; do
    cp -rsT "$part" "$cuda"
done
for library in "$cuda"/lib/*.so.*; do
    ln -sf "$library" "$cuda/lib64/$(basename "${library%%.so*}").so"
done
ln -sf "$cuda"/lib/*.a "$cuda/lib64/"
# The driver's library is not here; its name is all that the linker needs.
gcc -shared -Wl,-soname,libcuda.so.1 -x c /dev/null -o "$cuda/lib64/libcuda.so"

if [ -n "${3:-}" ]; then
    cp -r "$3" "$tools/source"
    source="$tools/source/bindings/torch"
else
    source=$(sed -n 's/^ *"tinycudann @ \(.*\)",$/\1/p' pyproject.toml)
fi
CUDA_HOME="$cuda" PATH="$tools/venv/bin:$cuda/bin:$PATH" TCNN_CUDA_ARCHITECTURES="$architectures" \
    "$tools/venv/bin/python" -m pip wheel -q --no-build-isolation --no-deps -w "$tools/dist" "$source"
"$python" -m pip install -q --no-deps "$tools"/dist/tinycudann-*.whl
