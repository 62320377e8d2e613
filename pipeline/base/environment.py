"""Every environment variable that can change the bits of a run: set or cleared when the project is imported.

A library reads its variables when it is loaded or first used, so this has to happen before torch, numpy and faiss are
imported. `pipeline/__init__.py` sees to that. Processes that the project starts inherit the result, and so do SLURM's
tasks and Ray's, whose clones import the project as well. What holds is recorded in made.json.
"""

import fnmatch
import os
import sys

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # PyTorch's convolutions
    # PyTorch's matrix products. MKL has different kernels for Intel's and AMD's processors; this one runs on both.
    "MKL_CBWR": "COMPATIBLE",
    # Matrix products of numpy, scipy and faiss. For faiss's own kernels see metrics/clustering.py.
    "OPENBLAS_CORETYPE": "Haswell",
    # numpy's own functions. With AVX-512 np.exp of a few per cent of all values differs in the last bit. These are the
    # names of numpy 2.4; another version ignores those that it does not know.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
"""The variables that choose instructions of the processor, with the values of portable ones: see `pipeline`."""

SET = {
    # Without this, cuBLAS may add in another order the next time. Other sizes let it choose other kernels.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""Variables that always get this value."""

DEFAULTS = {
    # A PyTorch thread that waits for another one sleeps and does not spin. When they spun, two threads on two busy
    # cores trained the small network at a twentieth of the speed. The setting changes no result.
    "OMP_WAIT_POLICY": "PASSIVE",
    # GPUs are numbered as nvidia-smi numbers them, and not by their speed.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}
"""Variables that change no bits. They get this value unless they have one."""

CLEARED = (
    # The precision of products on a GPU, which a recipe's `precision` decides.
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_EMULAT*",
    "CUBLAS_FIXEDPOINT_*",
    # Which library, kernel or workspace computes them.
    "CUBLASLT_WORKSPACE_SIZE",
    "CUDNN_CONV_WSCAP_DBG",
    "CUDNN_ERRATA_JSON_FILE",
    "DISABLE_ADDMM_CUDA_LT",
    "PYTORCH_TUNABLEOP_*",
    "TORCH_BLAS_PREFER_*",
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
    "TORCH_CUDNN_SDPA_*",
    "TORCH_CUDNN_USE_HEURISTIC_MODE*",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TORCH_LINALG_PREFER_*",
    "TORCH_LINEAR_FLATTEN_3D",
    "TORCH_MKLDNN_MATMUL_MIN_*",
    # The precision of products on a CPU, and which kernels and blocks compute them.
    "*DNN*_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",  # an older name of oneDNN's variable above
    "*DNN*_CPU_ISA_HINTS",
    "FAISS_OPT_LEVEL",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_ENABLE_CPU_FEATURES",
    "OPENBLAS_L2_SIZE",
    # The number of threads, by which sums are split. It follows from the recipe, and where fewer threads come than are
    # asked for, faiss's k-means waits for the others for ever.
    "KMP_ALL_THREADS",
    "KMP_DEVICE_THREAD_LIMIT",
    "KMP_DYNAMIC_MODE",
    "KMP_TEAMS_THREAD_LIMIT",
    "MKL_DOMAIN_NUM_THREADS",
    "MKL_DYNAMIC",
    "MKL_NUM_STRIPES",
    "MKL_THREADING_LAYER",
    "OMP_CANCELLATION",
    "OMP_DYNAMIC",
    "OMP_MAX_ACTIVE_LEVELS",
    "OMP_NESTED",
    "OMP_SCHEDULE",
    "OMP_THREAD_LIMIT",
)
"""Variables, and patterns of their names, that change bits or never let a run end, and have no value that we want."""


def hold(portable: bool) -> None:
    """Set and clear the variables of this process. What the user had set otherwise is named on stderr."""
    wanted = SET | (PORTABLE if portable else {})
    for name, value in wanted.items():
        found = os.environ.get(name)
        if found not in (None, value):
            print(f"{name}={found} would change results: {value} is used instead", file=sys.stderr)
    for name in sorted(os.environ):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in CLEARED):
            print(f"{name}={os.environ.pop(name)} would change results: it is not used", file=sys.stderr)
    os.environ |= wanted
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def handed() -> dict[str, str]:
    """The variables that workers elsewhere must have to make the same runs: what decides keys or bits and was set here.
    A cluster may start its tasks with an environment of its own."""
    names = ("PIPELINE_INSTRUCTIONS", *PORTABLE, *SET, *DEFAULTS)
    return {name: os.environ[name] for name in names if name in os.environ}


def held() -> dict[str, str]:
    """The variables of the lists above that this process has, for made.json."""
    return {name: os.environ[name] for name in (*PORTABLE, *SET, *DEFAULTS) if name in os.environ}
