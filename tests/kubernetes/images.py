"""Tiny container images for the real node, made from single static programs: no registry can be asked for any."""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

# Static glibc cannot resolve names without its shared parts: no wget, no nslookup.
APPLETS = "sh ls cat echo sleep true false httpd nc id ps mount dd yes env kill touch mkdir rm head tail grep printf test date md5sum cut timeout".split()


def image_tar(target: Path, name: str, files: dict[str, Path], entrypoint: list[str], busybox=False):
    """An image of one layer as `docker save` writes it. With `busybox`, its applets get their links."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp"):
            it = tarfile.TarInfo(folder)
            it.type, it.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(it)
        for path, source in files.items():
            it = tarfile.TarInfo(path)
            it.size, it.mode = source.stat().st_size, 0o755
            with open(source, "rb") as content:
                tar.addfile(it, content)
        for applet in APPLETS if busybox else ():
            it = tarfile.TarInfo(f"bin/{applet}")
            it.type, it.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(it)
    diff = "sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps({"architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()], "os": "linux", "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
                         "rootfs": {"type": "layers", "diff_ids": [diff]}, "history": [{"created_by": "kubetest"}]}).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(target, "w") as tar:
        for path, content in (("config.json", config), ("layer.tar", layer.getvalue()), ("manifest.json", manifest)):
            it = tarfile.TarInfo(path)
            it.size = len(content)
            tar.addfile(it, io.BytesIO(content))
