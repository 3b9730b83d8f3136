#!/bin/sh
# Fetch the pinned wheels, and the tokenizer of Llama 3, for a GPU host that reaches no package registry:
#   benchmarks/fetch_wheels.sh FOLDER 3.12        the folder, and the Python of the host (Linux, x86-64)
# torch is left out: the host brings its own. How to install from the folder: docs/benchmarks.md.
set -eu
folder=$1 python=$2
here=$(dirname "$0")
platforms=
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms="$platforms --platform ${tag}_x86_64"
done
# shellcheck disable=SC2086  -- one word a flag
pip download --no-deps --only-binary=:all: --implementation cp --python-version "$python" $platforms --dest "$folder" \
    -r "$here/../requirements/gpu.txt" llama-models==0.3.0 tiktoken==0.14.0 pytest==9.2.0 iniconfig==2.3.1
