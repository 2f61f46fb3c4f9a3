#!/usr/bin/env bash
# Test and time the native kernels on a Linux machine without network, setup or compiler tools but g++.
#
#     benchmarks/kernels_elsewhere.sh pack FOLDER        # here: the Python packages it needs, pure Python
#     benchmarks/kernels_elsewhere.sh STAGE ... -- FOLDER LIBRARIES MODEL.gguf    # there
#
# FOLDER      what `pack` made (NumPy must be installed there)
# LIBRARIES   a folder with libllama.so, libggml*.so of llama-cpp-python 0.3.36, built anywhere
# STAGE       check   all instruction sets of that processor against the references, bit by bit
#             two     the default model on 2 cores, contexts 256 and 1,024, and as AVX2
#             types   the default model as Q4_0, Q8_0 and Q4_K_M on 2 cores
#             all     the default model on all cores
#             seven   random weights of a 7B's shape on all cores: Q4_0, Q8_0, Q4_K_M
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

pack() {
    mkdir -p "$1"
    local site
    site="$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    for package in llama_cpp diskcache jinja2 markupsafe typing_extensions.py gguf tqdm requests urllib3 \
        certifi idna charset_normalizer yaml pytest _pytest pluggy iniconfig packaging pygments; do
        cp -r "$site/$package" "$1/"
    done
    find "$1" \( -name '*.so*' -o -name __pycache__ \) -exec rm -rf {} +
}

build() {
    local source="$root/native" common avx2 avx512
    common="-std=gnu++17 -O3 -DNDEBUG -fPIC -fvisibility=hidden -ffp-contract=off -w -isystem $source/ggml"
    avx2="-mavx2 -mfma -mf16c -mbmi"
    avx512="$avx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mprefer-vector-width=512"
    mkdir -p "$work"
    for file in $(cd "$source" && ls *.cpp | grep -v "^kernels_"); do g++ $common -c "$source/$file" -o "$work/$file.o"; done
    g++ $common $avx2 -c "$source/kernels_avx2.cpp" -o "$work/kernels_avx2.o"
    g++ $common $avx2 -mavxvnni -c "$source/kernels_avxvnni.cpp" -o "$work/kernels_avxvnni.o"
    g++ $common $avx512 -c "$source/kernels_avx512.cpp" -o "$work/kernels_avx512.o"
    g++ -shared "$work"/*.o -pthread -o "$work/libgorgon_kernels.so"
}

kernels() { python3 "$root/benchmarks/kernels.py" "$@"; }

check() {
    python3 -m pytest -q -p no:cacheprovider -c /dev/null --rootdir "$root" --confcutdir "$root/tests/native" \
        "$root/tests/native/test_products.py" "$root/tests/native/test_attention.py" | tail -3
}

two() {
    taskset -c 0,1 python3 "$root/benchmarks/kernels.py" "$model" --contexts 256 1024 --batches 1 2 4 8 16 --repeats 5
    GORGON_KERNELS_ISA=avx2 taskset -c 0,1 python3 "$root/benchmarks/kernels.py" "$model" --batches 1 4 8 --no-memory
}

types() {
    for kind in Q4_0 Q8_0 Q4_K_M; do
        kernels --quantize "$model" "$kind" "$work/small-$kind.gguf"
        taskset -c 0,1 python3 "$root/benchmarks/kernels.py" "$work/small-$kind.gguf" --batches 1 2 4 8 16 --no-memory
    done
}

all() { kernels "$model" --contexts 256 1024 --batches 1 2 3 4 6 8 12 16 32; }

seven() {
    for kind in Q4_0 Q8_0 Q4_K_M; do
        [[ -e "$work/7b-$kind.gguf" ]] || kernels --make 7b "$kind" "$work/7b-$kind.gguf"
        kernels "$work/7b-$kind.gguf" --batches 1 2 3 4 6 8 12 16 --repeats 2 --prompt 128 --no-memory
        rm "$work/7b-$kind.gguf"
    done
}

if [[ "$1" == pack ]]; then
    pack "$2"
    exit
fi
stages=()
while [[ "$1" != -- ]]; do
    stages+=("$1")
    shift
done
packages="$(realpath "$2")" libraries="$(realpath "$3")" model="$(realpath "$4")"
work="${WORK:-/tmp/gorgon_kernels}"
export PYTHONPATH="$packages:$root" PYTHONDONTWRITEBYTECODE=1 CUDA_VISIBLE_DEVICES=
export LLAMA_CPP_LIB_PATH="$libraries" LD_LIBRARY_PATH="$libraries:${LD_LIBRARY_PATH:-}"
export GORGON_KERNELS_LIBRARY="$work/libgorgon_kernels.so"
[[ -e "$GORGON_KERNELS_LIBRARY" ]] || build
grep -m1 'model name' /proc/cpuinfo
for stage in "${stages[@]}"; do
    echo "== $stage, $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"
    "$stage"
done
