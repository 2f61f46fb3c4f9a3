"""Typed bindings for the few ggml functions that we call ourselves, from the wheel's libraries.

Structures are passed as opaque addresses (``int``); the only layouts relied on are those of
``ggml_init_params``, ``gguf_init_params`` and ``ggml_type_traits``, whose headers are part of the
pinned version.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)
from typing import Any

from gorgon.llama.library import library_path

_base = ctypes.CDLL(str(library_path("ggml-base")))
_cpu = ctypes.CDLL(str(library_path("ggml-cpu")))
_ggml = ctypes.CDLL(str(library_path("ggml")))

TYPE_F32 = 0
TYPE_F16 = 1
TYPE_I32 = 26
DEVICE_CPU = 0
DEVICE_GPU = 1
STATUS_SUCCESS = 0
ALL_TASKS = -1  # GGML_N_TASKS_MAX


class InitParams(Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class GgufInitParams(Structure):
    """``struct gguf_init_params``."""

    _fields_ = (("no_alloc", c_bool), ("ctx", POINTER(c_void_p)))


_ToFloat = CFUNCTYPE(None, c_void_p, c_void_p, c_int64)


class TypeTraits(Structure):
    """``struct ggml_type_traits``."""

    _fields_ = (
        ("type_name", c_char_p),
        ("block_size", c_int64),
        ("block_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", _ToFloat),
        ("from_float_ref", c_void_p),
    )


def _bind(lib: ctypes.CDLL, name: str, result: Any, *args: Any) -> Callable[..., Any]:
    function = getattr(lib, name)
    function.restype = result
    function.argtypes = list(args)
    return function  # type: ignore[no-any-return]


_P, _N = c_void_p, c_int64

init = _bind(_base, "ggml_init", _P, InitParams)
free = _bind(_base, "ggml_free", None, _P)
tensor_overhead = _bind(_base, "ggml_tensor_overhead", c_size_t)
graph_overhead_custom = _bind(_base, "ggml_graph_overhead_custom", c_size_t, c_size_t, c_bool)
new_tensor_1d = _bind(_base, "ggml_new_tensor_1d", _P, _P, c_int, _N)
new_tensor_2d = _bind(_base, "ggml_new_tensor_2d", _P, _P, c_int, _N, _N)
new_tensor_3d = _bind(_base, "ggml_new_tensor_3d", _P, _P, c_int, _N, _N, _N)
new_graph_custom = _bind(_base, "ggml_new_graph_custom", _P, _P, c_size_t, c_bool)
build_forward_expand = _bind(_base, "ggml_build_forward_expand", None, _P, _P)
set_input = _bind(_base, "ggml_set_input", None, _P)
set_output = _bind(_base, "ggml_set_output", None, _P)
nelements = _bind(_base, "ggml_nelements", _N, _P)
nbytes = _bind(_base, "ggml_nbytes", c_size_t, _P)
row_size = _bind(_base, "ggml_row_size", c_size_t, c_int, _N)
block_size = _bind(_base, "ggml_blck_size", _N, c_int)
type_name = _bind(_base, "ggml_type_name", c_char_p, c_int)
get_type_traits = _bind(_base, "ggml_get_type_traits", POINTER(TypeTraits), c_int)
quantize_chunk = _bind(
    _base, "ggml_quantize_chunk", c_size_t, c_int, _P, _P, _N, _N, _N, POINTER(c_float)
)
get_data = _bind(_base, "ggml_get_data", _P, _P)
op_name = _bind(_base, "ggml_op_name", c_char_p, c_int)

mul_mat = _bind(_base, "ggml_mul_mat", _P, _P, _P, _P)
add = _bind(_base, "ggml_add", _P, _P, _P, _P)
mul = _bind(_base, "ggml_mul", _P, _P, _P, _P)
silu = _bind(_base, "ggml_silu", _P, _P, _P)
rms_norm = _bind(_base, "ggml_rms_norm", _P, _P, _P, c_float)
swiglu_split = _bind(_base, "ggml_swiglu_split", _P, _P, _P, _P)
concat = _bind(_base, "ggml_concat", _P, _P, _P, _P, c_int)
soft_max = _bind(_base, "ggml_soft_max", _P, _P, _P)
arange = _bind(_base, "ggml_arange", _P, _P, c_float, c_float, c_float)
cast = _bind(_base, "ggml_cast", _P, _P, _P, c_int)
top_k = _bind(_base, "ggml_top_k", _P, _P, _P, c_int)
get_rows = _bind(_base, "ggml_get_rows", _P, _P, _P, _P)
custom_4d = _bind(
    _base, "ggml_custom_4d", _P, _P, c_int, _N, _N, _N, _N, POINTER(_P), c_int, _P, c_int, _P
)
repeat_4d = _bind(_base, "ggml_repeat_4d", _P, _P, _P, _N, _N, _N, _N)
reshape_1d = _bind(_base, "ggml_reshape_1d", _P, _P, _P, _N)
reshape_2d = _bind(_base, "ggml_reshape_2d", _P, _P, _P, _N, _N)
reshape_3d = _bind(_base, "ggml_reshape_3d", _P, _P, _P, _N, _N, _N)
view_2d = _bind(_base, "ggml_view_2d", _P, _P, _P, _N, _N, c_size_t, c_size_t)
view_3d = _bind(_base, "ggml_view_3d", _P, _P, _P, _N, _N, _N, c_size_t, c_size_t, c_size_t)

backend_alloc_ctx_tensors = _bind(_base, "ggml_backend_alloc_ctx_tensors", _P, _P, _P)
backend_alloc_ctx_tensors_from_buft = _bind(
    _base, "ggml_backend_alloc_ctx_tensors_from_buft", _P, _P, _P
)
backend_buft_is_host = _bind(_base, "ggml_backend_buft_is_host", c_bool, _P)
backend_supports_op = _bind(_base, "ggml_backend_supports_op", c_bool, _P, _P)
graph_node = _bind(_base, "ggml_graph_node", _P, _P, c_int)
graph_n_nodes = _bind(_base, "ggml_graph_n_nodes", c_int, _P)
backend_buffer_free = _bind(_base, "ggml_backend_buffer_free", None, _P)
backend_buffer_get_base = _bind(_base, "ggml_backend_buffer_get_base", _P, _P)
backend_buffer_get_size = _bind(_base, "ggml_backend_buffer_get_size", c_size_t, _P)
backend_tensor_set = _bind(_base, "ggml_backend_tensor_set", None, _P, _P, c_size_t, c_size_t)
backend_tensor_set_async = _bind(
    _base, "ggml_backend_tensor_set_async", None, _P, _P, _P, c_size_t, c_size_t
)
backend_tensor_get_async = _bind(
    _base, "ggml_backend_tensor_get_async", None, _P, _P, _P, c_size_t, c_size_t
)
backend_tensor_get = _bind(_base, "ggml_backend_tensor_get", None, _P, _P, c_size_t, c_size_t)
backend_graph_compute_async = _bind(_base, "ggml_backend_graph_compute_async", c_int, _P, _P)
backend_synchronize = _bind(_base, "ggml_backend_synchronize", None, _P)
backend_free = _bind(_base, "ggml_backend_free", None, _P)
backend_get_default_buffer_type = _bind(_base, "ggml_backend_get_default_buffer_type", _P, _P)
backend_init_by_type = _bind(_ggml, "ggml_backend_init_by_type", _P, c_int, c_char_p)
backend_dev_by_type = _bind(_ggml, "ggml_backend_dev_by_type", _P, c_int)
backend_get_device = _bind(_base, "ggml_backend_get_device", _P, _P)
backend_dev_host_buffer_type = _bind(_base, "ggml_backend_dev_host_buffer_type", _P, _P)
backend_buft_alloc_buffer = _bind(_base, "ggml_backend_buft_alloc_buffer", _P, _P, c_size_t)
backend_dev_description = _bind(_base, "ggml_backend_dev_description", c_char_p, _P)
backend_cpu_set_n_threads = _bind(_cpu, "ggml_backend_cpu_set_n_threads", None, _P, c_int)
gallocr_new = _bind(_base, "ggml_gallocr_new", _P, _P)
gallocr_free = _bind(_base, "ggml_gallocr_free", None, _P)
gallocr_alloc_graph = _bind(_base, "ggml_gallocr_alloc_graph", c_bool, _P, _P)

gguf_init_from_file = _bind(_base, "gguf_init_from_file", _P, c_char_p, GgufInitParams)
gguf_free = _bind(_base, "gguf_free", None, _P)
gguf_find_key = _bind(_base, "gguf_find_key", _N, _P, c_char_p)
gguf_get_kv_type = _bind(_base, "gguf_get_kv_type", c_int, _P, _N)
gguf_get_val_u32 = _bind(_base, "gguf_get_val_u32", c_uint32, _P, _N)
gguf_get_val_f32 = _bind(_base, "gguf_get_val_f32", c_float, _P, _N)
gguf_get_val_str = _bind(_base, "gguf_get_val_str", c_char_p, _P, _N)
gguf_get_arr_type = _bind(_base, "gguf_get_arr_type", c_int, _P, _N)
gguf_get_arr_n = _bind(_base, "gguf_get_arr_n", c_size_t, _P, _N)
gguf_get_arr_data = _bind(_base, "gguf_get_arr_data", _P, _P, _N)
gguf_get_data_offset = _bind(_base, "gguf_get_data_offset", c_size_t, _P)
gguf_get_n_tensors = _bind(_base, "gguf_get_n_tensors", _N, _P)
gguf_get_tensor_name = _bind(_base, "gguf_get_tensor_name", c_char_p, _P, _N)
gguf_get_tensor_type = _bind(_base, "gguf_get_tensor_type", c_int, _P, _N)
gguf_get_tensor_ne = _bind(_base, "gguf_get_tensor_ne", POINTER(c_int64), _P, _N)
gguf_get_tensor_offset = _bind(_base, "gguf_get_tensor_offset", c_size_t, _P, _N)
gguf_get_tensor_size = _bind(_base, "gguf_get_tensor_size", c_size_t, _P, _N)
