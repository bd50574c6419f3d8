"""Streams whose sockets the test owns, so that a client can vanish by FIN or by RST at any moment."""

import asyncio
import json
import socket
import struct
import time

import grpc


def split_address(address):
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def vanish(writer, how):
    """Closes a socket: "fin" as close() does, "rst" at once and without a farewell."""
    if how == "rst":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


class HttpStream:
    """A streamed completion over a socket of its own."""

    def __init__(self, server, **body):
        self.server = server
        self.body = {"stream": True, "temperature": 0, "ignore_eos": True, **body}
        self.finish_reasons = []
        self.dones = 0
        self.errors = []
        self.event_times = []  # of events that carry text or tokens
        self.tokens = 0
        self.ended = False  # the last chunk of the body came

    async def open(self, receive_buffer_bytes=None):
        host, port = split_address(self.server.http)
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
        payload = json.dumps(self.body).encode()
        self.writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                          b"Content-Length: %d\r\n\r\n" % len(payload) + payload)
        await self.writer.drain()
        return self

    async def read_head(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        self.status = int(head.split(" ", 2)[1])
        self.head = head.lower()

    async def _chunks(self):
        while True:
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            data = await self.reader.readexactly(size + 2)
            if size == 0:
                self.ended = True
                return
            yield data[:-2]

    async def events(self):
        """The JSON of each event. Counts what ends a stream."""
        await self.read_head()
        assert self.status == 200, self.head + (await self.reader.read(2000)).decode(errors="replace")
        assert "text/event-stream" in self.head
        text = b""
        async for chunk in self._chunks():
            text += chunk
            while b"\n\n" in text:
                event, text = text.split(b"\n\n", 1)
                assert event.startswith(b"data: "), event
                if event == b"data: [DONE]":
                    self.dones += 1
                    continue
                value = json.loads(event[len("data: "):])
                if "error" in value:
                    self.errors.append(value["error"])
                    continue
                for choice in value["choices"]:
                    if choice["finish_reason"]:
                        self.finish_reasons.append(choice["finish_reason"])
                    else:
                        self.event_times.append(time.monotonic())
                    self.tokens += len(choice.get("token_ids") or ())
                yield value
        assert text == b""
        self.writer.close()

    async def read_all(self):
        async for _ in self.events():
            pass

    def assert_ended_once(self):
        assert self.ended
        assert (self.finish_reasons, self.dones, self.errors) == (["length"], 1, []), self.__dict__

    def vanish(self, how):
        vanish(self.writer, how)


class Relay:
    """A TCP relay to the server's gRPC port, whose server side can be made to vanish: grpcio closes no socket by RST."""

    async def open(self, address):
        self.upstream = split_address(address)
        self.writers = []
        self.tasks = []
        self.listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = "127.0.0.1:%d" % self.listener.sockets[0].getsockname()[1]
        return self

    async def _accept(self, reader, writer):
        up_reader, up_writer = await asyncio.open_connection(*self.upstream)
        self.writers += [writer, up_writer]
        self.up_writer = up_writer
        self.tasks += [asyncio.ensure_future(self._copy(reader, up_writer)),
                       asyncio.ensure_future(self._copy(up_reader, writer))]

    async def _copy(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass

    def vanish(self, how):
        self.listener.close()  # before the client tries again
        vanish(self.up_writer, how)

    async def close(self):
        self.listener.close()
        for task in self.tasks:
            task.cancel()
        for writer in self.writers:
            writer.close()


class GrpcStream:
    """A Generate call; through a relay of its own if it is to vanish."""

    def __init__(self, server, api, channel=None, **request):
        self.server = server
        self.api = api
        self.channel = channel
        self.request = api.pb.GenerateRequest(ignore_eos=True, sampling=api.pb.Sampling(temperature=0), **request)
        self.relay = None
        self.finishes = 0
        self.event_times = []
        self.tokens = 0
        self.code = None

    async def open(self):
        """Begins the call. (grpcio's own wait_for_connection would wait for the first token.)"""
        if self.channel is None:
            self.relay = await Relay().open(self.server.grpc)
            self.channel = grpc.aio.insecure_channel(self.relay.address, options=[
                ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)])
        self.call = self.api.rpc.InferenceStub(self.channel).Generate(self.request)
        return self

    async def events(self):
        try:
            async for message in self.call:
                self.finishes += message.HasField("finish")
                self.tokens += len(message.tokens)
                if message.tokens:
                    self.event_times.append(time.monotonic())
                yield message
            self.code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            self.code = error.code()
            raise

    async def read_all(self):
        async for _ in self.events():
            pass

    def assert_ended_once(self):
        assert (self.finishes, self.code) == (1, grpc.StatusCode.OK), self.__dict__

    def vanish(self, how):
        self.relay.vanish(how)

    async def close(self):
        self.call.cancel()
        if self.relay is not None:
            await self.relay.close()
            await self.channel.close()
