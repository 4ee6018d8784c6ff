"""A gRPC server of all call shapes, on bytes. Usage: grpc_server.py PORT [NAME=NUMBER...] (channel options)."""

import signal
import sys
import threading
import time
from concurrent import futures

import grpc

cancelled = 0
lock = threading.Lock()


def unary(request, context):
    seen = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
    context.send_initial_metadata([("x-initial", "first"), ("x-initial-bin", b"\x00\xff")])
    context.set_trailing_metadata([*seen, ("x-last", "last")])
    return request


def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n


def client_stream(requests, context):
    sizes = [len(request) for request in requests]
    return b"%d %d" % (len(sizes), sum(sizes))


def bidi(requests, context):
    yield from requests


def wait(request, context):
    """Ends when the caller cancels, or its deadline passes."""
    over = threading.Event()

    def end():
        global cancelled
        with lock:
            cancelled += 1
        over.set()

    if not context.add_callback(end):
        end()
    yield b"waiting"
    over.wait()


def count_cancelled(request, context):
    return b"%d" % cancelled


def time_left(request, context):
    return b"%f" % context.time_remaining()


def fail(request, context):
    context.set_trailing_metadata([("x-reason", "on purpose"), ("x-detail-bin", b"\x01\x02")])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: äöü ☃")


def fail_midway(request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.DATA_LOSS, "lost the rest")


def pause(request, context):
    time.sleep(float(request))
    return request


class Handler(grpc.GenericRpcHandler):
    methods = {
        "/test.Calls/Unary": grpc.unary_unary_rpc_method_handler(unary),
        "/test.Calls/ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "/test.Calls/ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "/test.Calls/Bidi": grpc.stream_stream_rpc_method_handler(bidi),
        "/test.Calls/Wait": grpc.unary_stream_rpc_method_handler(wait),
        "/test.Calls/CountCancelled": grpc.unary_unary_rpc_method_handler(count_cancelled),
        "/test.Calls/TimeLeft": grpc.unary_unary_rpc_method_handler(time_left),
        "/test.Calls/Fail": grpc.unary_unary_rpc_method_handler(fail),
        "/test.Calls/FailMidway": grpc.unary_stream_rpc_method_handler(fail_midway),
        "/test.Calls/Pause": grpc.unary_unary_rpc_method_handler(pause),
    }

    def service(self, details):
        return self.methods.get(details.method)


options = [(name, int(value)) for name, value in (argument.split("=") for argument in sys.argv[2:])]
server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=64),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), *options],
)
server.add_generic_rpc_handlers((Handler(),))
assert server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}") == int(sys.argv[1])
server.start()
signal.pause()
