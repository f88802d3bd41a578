"""The Gateway API's own definitions, of its standard channel, by way of Go's module cache (the proxy is asked once)."""

import json
import subprocess
from pathlib import Path

MODULE, VERSION = "sigs.k8s.io/gateway-api", "v1.6.3"
SUM = "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc="
PREFIX = "gateway.networking.k8s.io_"


class Failure(Exception):
    """Why they cannot be had."""


def definitions() -> dict[str, bytes]:
    """Plural of a kind → its definition, as YAML. All serve `v1`."""
    words = ["go", "mod", "download", "-json", f"{MODULE}@{VERSION}"]
    try:
        done = subprocess.run(words, cwd="/", capture_output=True, text=True)
    except FileNotFoundError:
        raise Failure("Go is missing, which fetches the definitions of the Gateway API: install 1.26 or newer from go.dev") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"Error": done.stderr.strip()}
    if "Dir" not in answer:
        raise Failure(f"{' '.join(words)}: {answer.get('Error')}")
    if answer["Sum"] != SUM:
        raise Failure(f"{MODULE} {VERSION} is not what it was: {answer['Sum']} instead of {SUM}")
    files = Path(answer["Dir"], "config/crd/standard").glob(f"{PREFIX}*.yaml")
    # One file is a policy against older versions, which a test cluster does not need.
    kinds = {it.stem.removeprefix(PREFIX): it.read_bytes() for it in files}
    return {plural: text for plural, text in sorted(kinds.items()) if b"\nkind: CustomResourceDefinition\n" in text}
