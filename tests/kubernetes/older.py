"""Another version of Kubernetes for a test cluster: the module file by which `go build` takes that version's packages.

What must hold: the file names Kubernetes and its staging modules alone; what they need further, etcd among it, they name themselves, and
`go build -mod=mod` writes it into the file. Not here: parts of our own (fake nodes, storage), which stay those of the pinned version.
"""

import os
import re
from pathlib import Path

# The oldest that the platform takes.
OLDEST = 28
# kube-proxy's mode `nftables`, which the real node uses, is on by default from here.
OLDEST_WITH_NODE = 31


def minor(version: str) -> int:
    """31 of `1.31.4`."""
    found = re.fullmatch(r"1\.(\d+)\.\d+", version)
    if not found:
        raise ValueError(f"`{version}` is no version of Kubernetes: name all of it, as 1.31.4")
    if int(found[1]) < OLDEST:
        raise ValueError(f"Kubernetes {version} is too old: the platform takes 1.{OLDEST} and newer")
    return int(found[1])


def module_file(pinned: str, version: str) -> str:
    """Content for that version, from the content of the pinned go.mod."""
    staging = set(re.findall(r"^\t(k8s\.io/\S+) => ", pinned, re.MULTILINE))
    staging.add("k8s.io/legacy-cloud-providers")  # until 1.30
    language = re.search(r"^go \S+$", pinned, re.MULTILINE)[0]
    of_staging = f"v0.{version.removeprefix('1.')}"
    # Modules that this version does not have are never asked for.
    replaced = "".join(f"\t{it} => {it} {of_staging}\n" for it in sorted(staging))
    return f"module kubetest\n\n{language}\n\nrequire k8s.io/kubernetes v{version}\n\nreplace (\n{replaced})\n"


def written(pinned: Path, version: str, target: Path) -> Path:
    """Writes it anew; go keeps its sums beside it."""
    draft = target.with_name(f"{target.name}.draft")
    draft.write_text(module_file(pinned.read_text(), version))
    os.replace(draft, target)
    return target
