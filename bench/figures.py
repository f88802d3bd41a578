"""What benches have in common: rows with their targets, waiting for what is measured, and the API by the administrator's certificate."""
import contextlib, datetime, http.client, os, pathlib, platform as machine, ssl, time, tomllib


def about():
    """The machine, in one line."""
    cpu = next((it.split(":", 1)[1].strip() for it in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if it.startswith("model name")), machine.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{datetime.date.today()}, {os.cpu_count()} x {cpu}, {memory:.0f} GiB, Linux {machine.release()}"


class Figures:
    """Rows as they are printed; `remark` stands behind the machine above the table."""

    def __init__(self, digits, width, remark=""):
        self.digits, self.width, self.remark, self.rows = digits, width, remark, []

    def row(self, what, value, unit, target="", ok=None, note=""):
        shown = f"{value:,.{self.digits}f} {unit}" if isinstance(value, float) else f"{value} {unit}"
        judged = {True: "ok", False: "MISSED", None: ""}[ok]
        self.rows.append((what, shown, target, judged, note))
        print(f"  {what:<{self.width}} {shown:>14}   {target:<22} {judged} {note}", flush=True)

    def end(self, markdown):
        """Writes the table, if that is asked for, and ends the process: with status 1 when a target is missed."""
        missed = sum(it[3] == "MISSED" for it in self.rows)
        if markdown:
            lines = [f"{about()}{self.remark}.", "", "| what | measured | target | |", "|---|---:|---|---|"]
            lines += [f"| {what.strip()} | {value} | {target} | {' '.join(filter(None, (ok, note)))} |" for what, value, target, ok, note in self.rows]
            pathlib.Path(markdown).write_text("\n".join(lines) + "\n")
        print(f"{len(self.rows)} figures, {missed} missed their target ({about()})")
        raise SystemExit(1 if missed else 0)


def until(what, seconds, step=0.005):
    """What `what` returns once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError, http.client.HTTPException):
            if found := what():
                return found
        time.sleep(step)
    raise SystemExit(f"not within {seconds} s: {what.__name__}")


def administrator(data, work):
    """Where the API of the server with this data dir is: host, port and its administrator's TLS, whose certificate is put into the folder `work`."""
    context = tomllib.loads((data / "admin.toml").read_text())
    pem = work / "admin.pem"
    pem.touch(0o600)
    pem.write_text(context["certificate"] + context["key"])
    tls = ssl.create_default_context(cadata=context["ca"])
    tls.load_cert_chain(pem)
    host, port = context["api"].rsplit(":", 1)
    return host, int(port), tls
