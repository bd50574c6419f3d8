import json
import pathlib
import shutil
import sys

import grpc
import openai
import pytest
from grpc_tools import protoc

from moe_serve import ROOT, Server


@pytest.fixture(scope="session")
def demo():
    """The model that the repository ships."""
    return ROOT / "deploy/demo"


@pytest.fixture(scope="session")
def long_demo(demo, tmp_path_factory):
    """The demo model with a context of 8,192 tokens: its text makes no sense there, but streams last long enough for
    other things to happen meanwhile. Without the lock, which speaks of another config.json."""
    directory = tmp_path_factory.mktemp("long") / "demo"
    shutil.copytree(demo, directory, ignore=shutil.ignore_patterns("scion.lock.json", "eval", "recipe", ".scion*"))
    config = json.loads((directory / "config.json").read_text())
    config["max_position_embeddings"] = 8192
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def context_tokens(demo):
    return json.loads((demo / "config.json").read_text())["max_position_embeddings"]


@pytest.fixture(scope="session")
def server(demo):
    with Server(demo) as running:
        yield running


@pytest.fixture(scope="session")
def long_server(long_demo):
    with Server(long_demo) as running:
        yield running


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    """The modules inference_pb2 and inference_pb2_grpc, generated from proto/ by grpcio-tools."""
    out = tmp_path_factory.mktemp("stubs")
    code = protoc.main(["protoc", f"--proto_path={ROOT / 'proto'}", f"--python_out={out}", f"--grpc_python_out={out}",
                        str(ROOT / "proto/scion/v1/inference.proto")])
    assert code == 0
    sys.path.insert(0, str(out))
    from scion.v1 import inference_pb2, inference_pb2_grpc

    class Api:
        pb = inference_pb2
        rpc = inference_pb2_grpc

    return Api


@pytest.fixture(scope="session")
def channel(server):
    with grpc.insecure_channel(server.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(api, channel):
    return api.rpc.InferenceStub(channel)


@pytest.fixture(scope="session")
def domains(stub, api):
    return [domain.name for domain in stub.ListDomains(api.pb.ListDomainsRequest()).domains]


@pytest.fixture(scope="session")
def client(server):
    import httpx
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0,
                       http_client=httpx.Client(trust_env=False)) as client:
        yield client


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
