"""What pyproject.toml cannot say: the gRPC stubs are generated while the package is built, and need, when they run, the
versions that they were made for or later ones."""

from __future__ import annotations

import pathlib
from importlib.metadata import requires, version

from grpc_tools import protoc
from setuptools import setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
PROTO = "scion/v1/inference.proto"


class BuildWithStubs(build_py):
    """Also writes inference_pb2.py, inference_pb2.pyi and inference_pb2_grpc.py, beside the proto in the package."""

    def run(self) -> None:
        super().run()
        out = HERE if self.editable_mode else pathlib.Path(self.build_lib)
        if protoc.main(["protoc", f"--proto_path={HERE}", f"--python_out={out}", f"--pyi_out={out}",
                        f"--grpc_python_out={out}", PROTO]):
            raise SystemExit(f"protoc cannot read {HERE / PROTO}")


runtime = next(need for need in requires("grpcio-tools") or () if need.startswith("protobuf"))
setup(cmdclass={"build_py": BuildWithStubs},
      extras_require={
          "client": [f"grpcio>={version('grpcio-tools')}", runtime],
          "train": ["torch>=2.2", "transformers>=4.48", "safetensors>=0.4", "numpy>=1.24", "tokenizers>=0.20"],
      })
