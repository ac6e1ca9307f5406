"""The yardstick: what a competent script does with aiohttp, uvloop and orjson, Parquet in and Parquet out.

    python tests/bench/bare_loop.py chat|embeddings URL INPUT.parquet OUTPUT.parquet CONCURRENCY

No limits, no ledger, no retries, no types: nothing that a run can do without.
"""

import asyncio
import base64
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop

PACK = 64
DIMENSIONS = 1536


def chat_bodies(source: str) -> Iterator[tuple[list[int], bytes]]:
    for batch in pq.ParquetFile(source).iter_batches(columns=["id", "text"]):
        for key, text in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            messages = [{"role": "user", "content": f"Label this: {text}"}]
            yield [key], orjson.dumps({"model": "gpt-4o-mini", "messages": messages, "max_tokens": 50})


def embedding_bodies(source: str) -> Iterator[tuple[list[int], bytes]]:
    for batch in pq.ParquetFile(source).iter_batches(batch_size=PACK, columns=["id", "text"]):
        body = {
            "model": "text-embedding-3-small",
            "input": batch.column(1).to_pylist(),
            "encoding_format": "base64",
        }
        yield batch.column(0).to_pylist(), orjson.dumps(body)


async def main(kind: str, url: str, source: str, target: str, concurrency: int) -> None:
    is_embedding = kind == "embeddings"
    bodies = embedding_bodies(source) if is_embedding else chat_bodies(source)
    answer = pa.list_(pa.float32(), DIMENSIONS) if is_embedding else pa.string()
    schema = pa.schema([("id", pa.int64()), ("answer", answer), ("tokens", pa.int64())])
    rows: list[tuple[list[int], Any, int]] = []
    with pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=False) as writer:

        def write() -> None:
            keys = [key for some, _, _ in rows for key in some]
            if is_embedding:
                raw = b"".join(vectors for _, vectors, _ in rows)
                numbers = pa.Array.from_buffers(pa.float32(), len(raw) // 4, [None, pa.py_buffer(raw)])
                answers: pa.Array = pa.FixedSizeListArray.from_arrays(numbers, DIMENSIONS)
            else:
                answers = pa.array([text for _, text, _ in rows], pa.string())
            tokens = [used for some, _, used in rows for _ in some]
            writer.write_table(
                pa.table([pa.array(keys, pa.int64()), answers, pa.array(tokens, pa.int64())], schema=schema)
            )
            rows.clear()

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

            async def work() -> None:
                for keys, body in bodies:
                    async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
                        reply = orjson.loads(await response.read())
                    if is_embedding:
                        raw = b"".join(base64.b64decode(entry["embedding"]) for entry in reply["data"])
                        rows.append((keys, raw, reply["usage"]["prompt_tokens"]))
                    else:
                        rows.append((keys, reply["choices"][0]["message"]["content"], reply["usage"]["total_tokens"]))
                    if len(rows) >= (16 if is_embedding else 10_000):
                        write()

            await asyncio.gather(*(work() for _ in range(concurrency)))
        if rows:
            write()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
