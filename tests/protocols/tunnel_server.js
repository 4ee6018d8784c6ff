// An HTTP/2 server that takes extended CONNECT (RFC 8441) if told so, and sends back what comes.
// Usage: tunnel_server.js PORT true|false
const http2 = require('node:http2');

const server = http2.createServer({ settings: { enableConnectProtocol: process.argv[3] === 'true' } });
server.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  if (headers[':path'] === '/refused') {
    stream.respond({ ':status': 418, 'x-protocol': headers[':protocol'] });
    stream.end('not here');
    return;
  }
  stream.respond({ ':status': 200, 'x-protocol': headers[':protocol'] });
  stream.pipe(stream);
});
server.listen(Number(process.argv[2]), '127.0.0.1');
