"""A streaming load on a server: random token ids in, token ids out, timed as the client sees them.

Every request has its own prompt; the same for every server. TTFT runs from before the connection to the event with the
first token id; a request that fails at any point counts as infinitely late. Gaps between tokens are those between
events; tokens that come in one event have come at once.
"""

import asyncio
import dataclasses
import json
import math
import random
import time


@dataclasses.dataclass(frozen=True)
class Load:
    vocabulary: int
    clients: int
    requests: int = 64
    prompt_tokens: int = 128
    output_tokens: int = 64

    # Ids below are control and byte tokens of the synthetic vocabularies. Bytes are kept out of the output as well: a
    # server that holds back half a character would seem late.
    FIRST_PIECE = 259

    def prompts(self):
        draw = random.Random(7 + self.clients)
        return [[1] + [draw.randrange(self.FIRST_PIECE, self.vocabulary) for _ in range(self.prompt_tokens - 1)]
                for _ in range(self.requests)]


class ScionApi:
    """moe-serve's OpenAI form."""
    path = "/v1/completions"

    @staticmethod
    def body(load, prompt):
        return {"prompt": prompt, "max_tokens": load.output_tokens, "stream": True, "ignore_eos": True,
                "temperature": 1.0, "top_k": 40, "return_token_ids": True,
                "logit_bias": {str(i): -100 for i in range(load.FIRST_PIECE)}}

    @staticmethod
    def tokens(event):
        """(number of tokens in the event, whether the answer ends with it)."""
        choice = event["choices"][0]
        return len(choice.get("token_ids", [])), choice["finish_reason"] is not None


class LlamaApi:
    """llama-server's own form, of llama.cpp and ik_llama.cpp; the latter sends a token an event without its id."""
    path = "/completion"

    @staticmethod
    def body(load, prompt):
        return {"prompt": prompt, "n_predict": load.output_tokens, "stream": True, "ignore_eos": True,
                "temperature": 1.0, "top_k": 40, "cache_prompt": False, "return_tokens": True,
                "logit_bias": [[i, False] for i in range(load.FIRST_PIECE)]}

    @staticmethod
    def tokens(event):
        if event.get("stop"):
            return 0, True
        return len(event["tokens"]) if event.get("tokens") else 1, False


class RequestFailed(Exception):
    pass


async def _events(reader):
    """The JSON of every data event of an HTTP answer with status 200, chunked or not."""
    status = await reader.readline()
    if b" 200 " not in status:
        raise RequestFailed(status.decode(errors="replace").strip() or "the connection was closed")
    chunked = False
    while (line := (await reader.readline()).strip().lower()) != b"":
        chunked |= line.startswith(b"transfer-encoding:") and b"chunked" in line
    pending = b""
    while True:
        if chunked:
            size = int((await reader.readline()).split(b";")[0] or b"0", 16)
            data = await reader.readexactly(size) if size else b""
            await reader.readline()
        else:
            data = await reader.read(1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line[6:])


class Tally:
    """What came of all requests, in seconds and tokens."""

    def __init__(self):
        self.ttft, self.gaps, self.output_tokens, self.errors = [], [], 0, []

    def add(self, begin, arrivals):
        """A request that got all that it asked for: when it began, and (time, number of tokens) of every event."""
        times = [time for time, count in arrivals for _ in range(count)]
        self.ttft.append(times[0] - begin)
        self.gaps += [later - earlier for earlier, later in zip(times, times[1:])]
        self.output_tokens += len(times)

    def add_failure(self, why):
        self.errors.append(why)
        self.ttft.append(math.inf)


async def _request(api, port, load, prompt, tally):
    """One request; returns when the server has closed."""
    begin = time.perf_counter()
    arrivals, received, ended = [], 0, False
    body = json.dumps(api.body(load, prompt)).encode()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        writer.write(b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n" % (api.path.encode(), len(body)) + body)
        await writer.drain()
        async for event in _events(reader):
            count, ends = api.tokens(event)
            arrivals.append((time.perf_counter(), count))
            received += count
            ended |= ends
        if not ended or received != load.output_tokens:
            raise RequestFailed(f"{received} of {load.output_tokens} tokens, {'ended' if ended else 'cut off'}")
        tally.add(begin, arrivals)
    except (OSError, ValueError, LookupError, EOFError, RequestFailed) as error:
        tally.add_failure(f"{type(error).__name__}: {error}")
    finally:
        if writer is not None:
            writer.close()


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.inf


async def _run(api, port, load):
    prompts, tally = load.prompts(), Tally()

    async def client():
        while prompts:
            await _request(api, port, load, prompts.pop(), tally)

    begin = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(load.clients)])
    seconds = time.perf_counter() - begin
    return {"tokens_per_second": tally.output_tokens / seconds,
            "ttft_p50": percentile(tally.ttft, 0.5), "ttft_p99": percentile(tally.ttft, 0.99),
            "itl_p50": percentile(tally.gaps, 0.5), "itl_p99": percentile(tally.gaps, 0.99),
            "failed": len(tally.errors), "errors": sorted(set(tally.errors))[:3]}


def run(api, port, load):
    """Puts the load on the server and returns the figures in tokens/s and seconds. Failed requests count in them."""
    return asyncio.run(_run(api, port, load))
