"""What the official SDK's users write: AsyncOpenAI on aiohttp, 200 at a time, Parquet in and Parquet out.

python tests/bench/sdk_loop.py BASE_URL INPUT.parquet OUTPUT.parquet CONCURRENCY
"""

import asyncio
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from openai import AsyncOpenAI, DefaultAioHttpClient


async def main(base_url: str, source: str, target: str, concurrency: int) -> None:
    rows = pq.read_table(source, columns=["id", "text"]).to_pylist()
    turns = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=DefaultAioHttpClient()) as client:

        async def ask(row: dict[str, object]) -> str | None:
            async with turns:
                reply = await client.chat.completions.create(
                    model="gpt-4o-mini",
                    max_tokens=50,
                    messages=[{"role": "user", "content": f"Label this: {row['text']}"}],
                )
            return reply.choices[0].message.content

        answers = await asyncio.gather(*(ask(row) for row in rows))
    pq.write_table(pa.table({"id": [row["id"] for row in rows], "answer": answers}), target)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
