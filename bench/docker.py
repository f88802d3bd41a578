"""Docker as a peer: Debian's docker.io in a network namespace of its own, with its own data folder; removed afterwards."""
import contextlib, http.client, json, os, pathlib, shutil, signal, subprocess, time


class Docker:
    def __init__(self, work):
        self.work, self.name, self.proc = pathlib.Path(work) / "docker", f"arco-bench-{os.getpid()}", None
        self.cgroups = []

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
        self.cgroups = [it / "docker" for it in [pathlib.Path("/sys/fs/cgroup"), *pathlib.Path("/sys/fs/cgroup").iterdir()] if (it / "cgroup.procs").exists() and not (it / "docker").exists()]
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
        """Copies an image of the platform's registry into the engine. Returns why it cannot be, or nothing.

        Layers of ours are compressed with zstd, which Debian's engine does not read: they are unpacked into an archive as `docker save` writes it.
        """
        for program in ("skopeo", "zstd"):
            if not shutil.which(program):
                return f"{program} is not installed (apt-get install {program})"
        oci, archive = self.work / "oci", self.work / "archive"
        copied = self.run("skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--src-creds", f"token:{credential}", f"docker://{registry}/{repository}:{reference}", f"oci:{oci}:bench", check=False)
        if copied.returncode:
            return f"skopeo: {copied.stderr.strip()[-200:]}"
        blob = lambda it: oci / "blobs" / it["digest"].replace(":", "/")
        manifest = json.loads(blob(json.loads((oci / "index.json").read_text())["manifests"][0]).read_text())
        archive.mkdir()
        layers = []
        for n, layer in enumerate(manifest["layers"]):
            layers.append(f"{n}.tar")
            how = {"zstd": ["zstd", "-dcq"], "gzip": ["gzip", "-dc"]}.get(layer["mediaType"].rpartition("+")[2], ["cat"])
            with open(blob(layer), "rb") as packed, open(archive / layers[-1], "wb") as plain:
                subprocess.run(how, stdin=packed, stdout=plain, check=True)
        shutil.copy(blob(manifest["config"]), archive / "config.json")
        (archive / "manifest.json").write_text(json.dumps([{"Config": "config.json", "RepoTags": ["bench:latest"], "Layers": layers}]))
        loaded = self.inside("sh", "-c", 'tar -C "$1" -c . | docker -H "$2" load', "sh", str(archive), f"unix://{self.work}/docker.sock", check=False)
        shutil.rmtree(oci), shutil.rmtree(archive)
        return f"docker load: {loaded.stderr.strip()[-200:]}" if loaded.returncode else None

    def first_answer(self, port, command):
        """Seconds from `docker run` to the first answer over HTTP, asked inside the namespace."""
        began = time.monotonic()
        container = self.docker("run", "-d", "-e", f"PORT={port}", "--memory", "512m", "bench:latest", *command).stdout.strip()
        address = self.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", container).stdout.strip()
        asked = self.inside("sh", "-c", 'for _ in $(seq 5000); do curl -fs -o /dev/null --connect-timeout 1 "http://$0:$1/" && exit; done; exit 1', address, str(port), check=False)
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
        for cgroup in self.cgroups:
            with contextlib.suppress(OSError):
                cgroup.rmdir()
        self.run("ip", "netns", "delete", self.name, check=False)
        shutil.rmtree(self.work, ignore_errors=True)
