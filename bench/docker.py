"""Docker as a peer: Debian's docker.io in a network namespace of its own, with its own data folder; removed afterwards."""
import contextlib, http.client, json, os, pathlib, shutil, signal, subprocess, time


class Docker:
    def __init__(self, work):
        self.work, self.name, self.proc = pathlib.Path(work) / "docker", f"arco-bench-{os.getpid()}", None

    def run(self, *words, check=True):
        return subprocess.run([*words], capture_output=True, text=True, check=check)

    def inside(self, *words, check=True):
        """A command in the network namespace; `ip netns exec` would hide /sys/fs/cgroup."""
        return self.run("nsenter", f"--net=/run/netns/{self.name}", *words, check=check)

    def docker(self, *words, check=True):
        return self.inside("docker", "-H", f"unix://{self.work}/docker.sock", *words, check=check)

    def start(self):
        """Starts the engine. Returns why it cannot be, or nothing."""
        dockerd = shutil.which("dockerd") or "/usr/sbin/dockerd"
        if not os.path.exists(dockerd):
            return "dockerd is not installed (apt-get install docker.io)"
        self.work.mkdir(parents=True)
        self.run("ip", "netns", "add", self.name)
        self.inside("ip", "link", "set", "lo", "up")
        config = {
            "data-root": f"{self.work}/data", "exec-root": f"{self.work}/exec", "pidfile": f"{self.work}/docker.pid", "hosts": [f"unix://{self.work}/docker.sock"],
            "bip": "10.222.0.1/24", "exec-opts": ["native.cgroupdriver=cgroupfs"], "storage-driver": "overlay2",
        }
        (self.work / "config.json").write_text(json.dumps(config))
        with open(self.work / "log", "wb") as log:
            self.proc = subprocess.Popen(["nsenter", f"--net=/run/netns/{self.name}", dockerd, "--config-file", str(self.work / "config.json")], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if self.proc.poll() is not None:
                break
            if self.docker("version", check=False).returncode == 0:
                return None
            time.sleep(0.2)
        return f"dockerd did not start: {(self.work / 'log').read_text()[-300:]}"

    def load(self, registry, repository, reference, credential):
        """Copies an image of the platform's registry into the engine. Returns why it cannot be, or nothing."""
        archive = self.work / "image.tar"
        copied = self.run("skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--src-creds", f"token:{credential}", f"docker://{registry}/{repository}:{reference}", f"docker-archive:{archive}:bench:latest", check=False)
        if copied.returncode:
            return f"skopeo: {copied.stderr.strip()[-200:]}"
        loaded = self.docker("load", "-i", str(archive), check=False)
        return f"docker load: {loaded.stderr.strip()[-200:]}" if loaded.returncode else None

    def first_answer(self, port, command):
        """Seconds from `docker run` to the first answer over HTTP, asked inside the namespace."""
        began = time.monotonic()
        container = self.docker("run", "-d", "-e", f"PORT={port}", "--memory", "512m", "bench:latest", *command).stdout.strip()
        address = self.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", container).stdout.strip()
        asked = self.inside("sh", "-c", 'until curl -fs -o /dev/null --connect-timeout 1 "http://$0:$1/"; do :; done', address, str(port), check=False)
        taken = time.monotonic() - began
        self.docker("rm", "-f", container)
        if asked.returncode:
            raise RuntimeError("the container did not answer")
        return taken

    def stop(self):
        if self.proc and self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.proc.wait(30)
        for line in reversed(pathlib.Path("/proc/mounts").read_text().splitlines()):
            if str(self.work) in line:
                self.run("umount", "-l", line.split()[1], check=False)
        self.run("ip", "netns", "delete", self.name, check=False)
        shutil.rmtree(self.work, ignore_errors=True)
