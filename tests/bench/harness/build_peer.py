"""llama.cpp from PyPI's llama-cpp-python source package, for a comparison without --peer."""

import os
import pathlib
import subprocess
import sys

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
TARGETS = ("llama-bench", "llama-batched-bench", "llama-server", "llama-quantize")


def llama_cpp(work):
    """Downloads with pip and builds with native flags below `work`, unless that was done before. Returns the directory
    of the programs."""
    top = pathlib.Path(work) / "llama.cpp"
    programs = top / "build/bin"
    if all((programs / target).exists() for target in TARGETS):
        return programs
    print(f"no --peer: building llama.cpp of {PACKAGE} {VERSION} in {top}", file=sys.stderr, flush=True)
    top.mkdir(parents=True, exist_ok=True)
    venv = top / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", top,
                    f"{PACKAGE}=={VERSION}"], check=True)
    archive = next(top.glob("llama_cpp_python-*.tar.gz"))
    subprocess.run(["tar", "-xzf", archive, "-C", top], check=True)
    source = top / archive.name.removesuffix(".tar.gz") / "vendor/llama.cpp"
    subprocess.run(["cmake", "-S", source, "-B", top / "build", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
                    "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
                    "-DLLAMA_BUILD_UI=OFF"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", top / "build", "-j", str(os.cpu_count()), "--target", *TARGETS], check=True,
                   stdout=subprocess.DEVNULL)
    return programs
