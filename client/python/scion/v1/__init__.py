"""Messages and stubs of the gRPC API, `inference_pb2` and `inference_pb2_grpc`.

Generated from inference.proto when the package is built (setup.py).
"""
