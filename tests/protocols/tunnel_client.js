// Opens tunnels by extended CONNECT (RFC 8441). Usage: tunnel_client.js URL STATUS [HEADER=VALUE]
// STATUS: what a CONNECT is answered with; 200: then bytes go back and forth.
const assert = require('node:assert');
const { once } = require('node:events');
const http2 = require('node:http2');

async function tunnel(session, path) {
  const stream = session.request({
    ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'http', ':path': path, ':authority': 'tunnel.test',
  });
  const [headers] = await once(stream, 'response');
  return [stream, headers];
}

async function all(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces);
}

(async () => {
  const [url, status, header] = process.argv.slice(2);
  const session = http2.connect(url);
  await once(session, 'remoteSettings');
  assert.strictEqual(session.remoteSettings.enableConnectProtocol, true);
  if (status !== '200') {
    const [stream, headers] = await tunnel(session, '/chat');
    assert.strictEqual(String(headers[':status']), status);
    const [name, value] = header.split('=');
    assert.strictEqual(headers[name], value);
    stream.close();
  } else {
    for (let n = 0; n < 5; n++) {
      const [stream, headers] = await tunnel(session, '/chat');
      assert.deepStrictEqual([headers[':status'], headers['x-protocol']], [200, 'websocket']);
      stream.write('hello');
      const [first] = await once(stream, 'data');
      assert.strictEqual(first.toString(), 'hello');
      // Much, and then an end, which comes back as one.
      const much = Buffer.alloc(2_000_000, n);
      stream.end(much);
      assert.ok(much.equals(await all(stream)));
    }
    const [stream, headers] = await tunnel(session, '/refused');
    assert.strictEqual(headers[':status'], 418);
    assert.strictEqual((await all(stream)).toString(), 'not here');
  }
  // The connection is as good as before.
  session.close();
  console.log('all well');
})();
