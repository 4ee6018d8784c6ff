// Talks to websocket_server.py with `ws`, compression and all. Usage: websocket_client.js URL
const assert = require('node:assert');
const { once } = require('node:events');
const { WebSocket } = require('ws');

(async () => {
  const socket = new WebSocket(process.argv[2], ['chat']);
  await once(socket, 'open');
  assert.match(socket.extensions, /permessage-deflate/);
  for (const message of [Buffer.alloc(0), Buffer.from('text '.repeat(100000)), Buffer.alloc(3_000_000, 7)]) {
    socket.send(message);
    const [got] = await once(socket, 'message');
    assert.ok(message.equals(got));
  }
  socket.send('close');
  const [code, reason] = await once(socket, 'close');
  assert.deepStrictEqual([code, reason.toString()], [4321, 'as asked']);
  console.log('all well');
})();
