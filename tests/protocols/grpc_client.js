// Calls grpc_server.py with grpc-js. Usage: grpc_client.js ADDRESS
const assert = require('node:assert');
const { once } = require('node:events');
const grpc = require('@grpc/grpc-js');

const same = (bytes) => bytes;
const name = (method) => `/test.Calls/${method}`;
const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure(), {
  'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1,
});

const unary = (method, message, metadata = new grpc.Metadata(), options = {}) =>
  new Promise((resolve, reject) => {
    const answer = (error, response) => (error ? reject(error) : resolve({ response, call }));
    const call = client.makeUnaryRequest(name(method), same, same, message, metadata, options, answer);
    call.on('metadata', (initial) => { call.initial = initial; });
    call.on('status', (status) => { call.status = status; });
  });

const all = async (call) => {
  const messages = [];
  for await (const message of call) messages.push(message);
  return messages;
};

(async () => {
  const metadata = new grpc.Metadata();
  metadata.set('x-ascii', 'value');
  metadata.set('x-raw-bin', Buffer.from([0, 255]));
  const { response, call } = await unary('Unary', Buffer.from('hello'), metadata);
  assert.strictEqual(response.toString(), 'hello');
  assert.deepStrictEqual(call.initial.get('x-initial'), ['first']);
  assert.deepStrictEqual(call.status.metadata.get('x-ascii'), ['value']);
  assert.deepStrictEqual(call.status.metadata.get('x-raw-bin'), [Buffer.from([0, 255])]);

  const stream = client.makeServerStreamRequest(name('ServerStream'), same, same, Buffer.from('500'));
  assert.strictEqual((await all(stream)).length, 500);

  const sum = await new Promise((resolve, reject) => {
    const call = client.makeClientStreamRequest(name('ClientStream'), same, same, (error, response) =>
      error ? reject(error) : resolve(response));
    for (let n = 0; n < 100; n++) call.write(Buffer.alloc(n));
    call.end();
  });
  assert.strictEqual(sum.toString(), '100 4950');

  const bidi = client.makeBidiStreamRequest(name('Bidi'), same, same);
  for (let n = 0; n < 100; n++) {
    bidi.write(Buffer.from(String(n)));
    const [message] = await once(bidi, 'data');
    assert.strictEqual(message.toString(), String(n));
  }
  bidi.end();

  const large = Buffer.alloc(20_000_000, 5);
  assert.ok(large.equals((await unary('Unary', large)).response));

  await assert.rejects(unary('Fail', Buffer.alloc(0)), (error) => {
    assert.strictEqual(error.code, grpc.status.FAILED_PRECONDITION);
    assert.strictEqual(error.details, 'not today: äöü ☃');
    assert.deepStrictEqual(error.metadata.get('x-reason'), ['on purpose']);
    return true;
  });

  const cancelled = async () => Number((await unary('CountCancelled', Buffer.alloc(0))).response);
  const before = await cancelled();
  const deadline = { deadline: Date.now() + 300 };
  const waits = [
    client.makeServerStreamRequest(name('Wait'), same, same, Buffer.alloc(0), new grpc.Metadata(), deadline),
    client.makeServerStreamRequest(name('Wait'), same, same, Buffer.alloc(0)),
  ];
  const codes = waits.map((wait) => once(wait, 'error').then(([error]) => error.code));
  await Promise.all(waits.map((wait) => once(wait, 'data')));
  waits[1].cancel();
  assert.deepStrictEqual(await Promise.all(codes), [grpc.status.DEADLINE_EXCEEDED, grpc.status.CANCELLED]);
  const end = Date.now() + 10_000;
  while ((await cancelled()) < before + 2) assert.ok(Date.now() < end, 'the server was not told');
  client.close();
  console.log('all well');
})();
