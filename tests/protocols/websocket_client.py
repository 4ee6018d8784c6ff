"""Talks to the server beside this file. Usage: websocket_client.py URL"""

import asyncio
import random
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError


async def talk(url):
    async with connect(url, max_size=None, subprotocols=["chat"], proxy=None) as socket:
        assert socket.subprotocol == "chat", socket.subprotocol
        for message in ["", "grüße ☃", b"", bytes(range(256)), random.Random(1).randbytes(5_000_000)]:
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send(["in ", "three ", "frames"])
        assert await socket.recv() == "in three frames"
        await (await socket.ping())
        await socket.send("ping")
        assert await socket.recv() == "pong came"
        await socket.send("close")
        try:
            await socket.recv()
        except ConnectionClosedError as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4321, "as asked"), closed
        else:
            raise AssertionError("it was not closed")


async def main():
    await asyncio.gather(*(talk(sys.argv[1]) for _ in range(10)))
    print("all well")


asyncio.run(main())
