"""Calls the server beside this file in every way. Usage: grpc_client.py ADDRESS CHECK..."""

import random
import sys
import threading
import time

import grpc

SERVICE = "/test.Calls/"


def channel(**options):
    options = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1, **options}
    return grpc.insecure_channel(sys.argv[1], options=list(options.items()))


def expect_status(code, call):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} {error.details()}, not {code}"
        return error
    raise AssertionError(f"no error, where {code} was expected")


def shapes():
    with channel() as mesh:
        assert mesh.unary_unary(SERVICE + "Unary")(b"hello") == b"hello"
        assert mesh.unary_unary(SERVICE + "Unary")(b"") == b""
        assert [int(n) for n in mesh.unary_stream(SERVICE + "ServerStream")(b"1000")] == list(range(1000))
        assert list(mesh.unary_stream(SERVICE + "ServerStream")(b"0")) == []
        sent = (b"x" * n for n in range(1000))
        assert mesh.stream_unary(SERVICE + "ClientStream")(sent) == b"1000 499500"
        assert mesh.stream_unary(SERVICE + "ClientStream")(iter(())) == b"0 0"
        # Each message waits for the answer to the one before: nothing is held back on the way.
        answered = threading.Semaphore(1)

        def ping():
            for n in range(200):
                answered.acquire()
                yield b"%d" % n

        got = []
        for message in mesh.stream_stream(SERVICE + "Bidi")(ping()):
            got.append(int(message))
            answered.release()
        assert got == list(range(200))


def metadata():
    with channel() as mesh:
        sent = [("x-ascii", "value"), ("x-two", "a"), ("x-two", "b"), ("x-raw-bin", bytes(range(256)))]
        response, call = mesh.unary_unary(SERVICE + "Unary").with_call(b"", metadata=sent)
        initial = dict(call.initial_metadata())
        assert initial["x-initial"] == "first" and initial["x-initial-bin"] == b"\x00\xff", initial
        trailing = [tuple(item) for item in call.trailing_metadata()]
        for item in [*sent, ("x-last", "last")]:
            assert item in trailing, f"{item} is not in {trailing}"
        error = expect_status(grpc.StatusCode.FAILED_PRECONDITION, lambda: mesh.unary_unary(SERVICE + "Fail")(b""))
        assert error.details() == "not today: äöü ☃", error.details()
        trailing = dict(error.trailing_metadata())
        assert trailing["x-reason"] == "on purpose" and trailing["x-detail-bin"] == b"\x01\x02", trailing
        got = []
        error = expect_status(
            grpc.StatusCode.DATA_LOSS,
            lambda: [got.append(message) for message in mesh.unary_stream(SERVICE + "FailMidway")(b"")],
        )
        assert got == [b"one", b"two"] and error.details() == "lost the rest"
        expect_status(grpc.StatusCode.UNIMPLEMENTED, lambda: mesh.unary_unary(SERVICE + "Nothing")(b""))


def large():
    with channel() as mesh:
        message = random.Random(1).randbytes(30_000_000)
        assert mesh.unary_unary(SERVICE + "Unary")(message) == message
        pieces = [random.Random(n).randbytes(2_000_000) for n in range(10)]
        assert list(mesh.stream_stream(SERVICE + "Bidi")(iter(pieces))) == pieces


def cancelled(mesh):
    return int(mesh.unary_unary(SERVICE + "CountCancelled")(b""))


def wait_until(what, holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.01)


def deadlines():
    with channel() as mesh:
        left = float(mesh.unary_unary(SERVICE + "TimeLeft")(b"", timeout=5))
        assert 3 < left <= 5, left
        before, began = cancelled(mesh), time.monotonic()
        expect_status(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: list(mesh.unary_stream(SERVICE + "Wait")(b"", timeout=0.5)))
        took = time.monotonic() - began
        assert 0.4 < took < 2, took
        wait_until("the server hears of the deadline", lambda: cancelled(mesh) == before + 1)


def cancellation():
    with channel() as mesh:
        before = cancelled(mesh)
        call = mesh.unary_stream(SERVICE + "Wait")(b"")
        assert next(call) == b"waiting"
        call.cancel()
        wait_until("the server hears that it is cancelled", lambda: cancelled(mesh) == before + 1)
        calls = [mesh.unary_stream(SERVICE + "Wait")(b"") for _ in range(20)]
        for call in calls:
            next(call)
        for call in calls:
            call.cancel()
        wait_until("the server hears of all", lambda: cancelled(mesh) == before + 21)
        # The client is gone, not only the call.
        with channel(**{"grpc.use_local_subchannel_pool": 1}) as gone:
            next(gone.unary_stream(SERVICE + "Wait")(b""))
        wait_until("the server hears that the client is gone", lambda: cancelled(mesh) == before + 22)


def pings():
    options = {
        "grpc.keepalive_time_ms": 500,
        "grpc.keepalive_timeout_ms": 2000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
    }
    with channel(**options) as mesh:
        assert mesh.unary_unary(SERVICE + "Pause")(b"4") == b"4"


def many():
    """Calls, one after another and side by side, none of which may fail."""
    with channel() as mesh:
        call = mesh.unary_unary(SERVICE + "Unary")
        end = time.monotonic() + 5
        count = 0
        while time.monotonic() < end:
            for future in [call.future(b"%d" % n) for n in range(8)]:
                future.result()
                count += 1
        assert count > 300, count


def long_lived():
    """More streams than the app takes on one connection are open side by side."""
    channels = [channel(**{"grpc.use_local_subchannel_pool": 1}) for _ in range(6)]
    answered = [threading.Event() for _ in channels]
    release = threading.Event()

    def talk(mesh, event):
        def messages():
            yield b"open"
            release.wait(20)

        for _ in mesh.stream_stream(SERVICE + "Bidi")(messages()):
            event.set()

    threads = [threading.Thread(target=talk, args=pair) for pair in zip(channels, answered)]
    for thread in threads:
        thread.start()
    opened = sum(event.wait(5) for event in answered)
    release.set()
    for thread in threads:
        thread.join()
    assert opened == len(channels), f"only {opened} of {len(channels)} streams were open at once"


for check in sys.argv[2:]:
    print(check, flush=True)
    globals()[check]()
print("all well")
