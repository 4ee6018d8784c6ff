"""A WebSocket server that sends back what it gets. Usage: websocket_server.py PORT"""

import asyncio
import sys

from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        if message == "close":
            await socket.close(4321, "as asked")
        elif message == "ping":
            await (await socket.ping())
            await socket.send("pong came")
        else:
            await socket.send(message)


async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=None, subprotocols=["chat"]) as server:
        await server.serve_forever()


asyncio.run(main())
