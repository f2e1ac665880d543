#!/usr/bin/env python3
"""record.py NAME [KEEP]: boot one configuration, drive the tour, write out/NAME.json."""
import gzip, json, lzma, os, re, select, shutil, struct, subprocess, sys, time
from pathlib import Path

import numpy as np

LAB = Path(os.environ.get("KVMARCH_LAB", "lab")).resolve()
X86 = ["-machine", "pc", "-cpu", "max,+svm"]
ARM = ["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a72"]
RISCV = ["-machine", "virt", "-cpu", "rv64"]
PPC = ["-machine", "pseries,cap-nested-hv=on", "-cpu", "power9"]
# name: (arch, kernel directory, module arguments, extra kernel command line, extra machine arguments)
NODAMON = "damon_stat.enabled=0"  # 7.x starts a DAMON thread that ages guest memory at its own times
CONFIGS = {
    "amd64-6.1": ("x86", "6.1.0-56-amd64", {}, "", X86),
    "amd64-6.1-notdp": ("x86", "6.1.0-56-amd64", {"kvm": "tdp_mmu=0"}, "", X86),
    "amd64-6.1-notdp-active": ("x86", "6.1.0-56-amd64", {"kvm": "tdp_mmu=0"}, "lab_touch=1", X86),
    "amd64-6.1-lazysplit": ("x86", "6.1.0-56-amd64", {"kvm": "eager_page_split=0"}, "", X86),
    "amd64-6.1-nxhuge": ("x86", "6.1.0-56-amd64", {"kvm": "nx_huge_pages=force"}, "", X86),
    "amd64-6.12-4level": ("x86", "6.12.96+deb13-amd64", {}, "", X86[:2] + ["-cpu", "max,+svm,-la57"]),
    "amd64-5.10-active": ("x86", "5.10.0-46-amd64", {}, "lab_touch=1", X86),
    "amd64-6.1-shadow": ("x86", "6.1.0-56-amd64", {"kvm-amd": "npt=0"}, "", X86),
    "amd64-5.10": ("x86", "5.10.0-46-amd64", {}, "", X86),
    "amd64-5.10-tdp": ("x86", "5.10.0-46-amd64", {"kvm": "tdp_mmu=1"}, "", X86),
    "amd64-6.12": ("x86", "6.12.96+deb13-amd64", {}, "", X86),
    "amd64-6.12-notdp": ("x86", "6.12.96+deb13-amd64", {"kvm": "tdp_mmu=0"}, "", X86),
    "amd64-7.2": ("x86", "7.2.13-amd64", {}, NODAMON, X86),
    "amd64-7.2-notdp": ("x86", "7.2.13-amd64", {"kvm": "tdp_mmu=0"}, NODAMON, X86),
    "arm64-6.1": ("arm64", "6.1.0-50-arm64", {}, "", ARM),
    "arm64-5.10": ("arm64", "5.10.0-32-arm64", {}, "", ARM),
    "arm64-6.12": ("arm64", "6.12.96+deb13-arm64", {}, "", ARM),
    "arm64-6.12-16k": ("arm64", "6.12.95+deb13-arm64-16k", {}, "", ARM[:2] + ["-cpu", "max"]),
    "arm64-6.12-vhe": ("arm64", "6.12.96+deb13-arm64", {}, "", ARM[:2] + ["-cpu", "max"]),
    "arm64-6.12-vhe-nolpa2": ("arm64", "6.12.96+deb13-arm64", {}, "", ARM[:2] + ["-cpu", "max,lpa2=off"]),
    "arm64-6.12-16k-nolpa2": ("arm64", "6.12.95+deb13-arm64-16k", {}, "", ARM[:2] + ["-cpu", "max,lpa2=off"]),
    "amd64-6.1-shadow-active": ("x86", "6.1.0-56-amd64", {"kvm-amd": "npt=0"}, "lab_touch=1", X86),
    "amd64-5.10-tdp-active": ("x86", "5.10.0-46-amd64", {"kvm": "tdp_mmu=1"}, "lab_touch=1", X86),
    "riscv64-6.12": ("riscv", "6.12-riscv64", {}, "", RISCV),
    "riscv64-7.2": ("riscv", "7.2.13-riscv64", {}, NODAMON, RISCV),
    "arm64-6.1-vhe": ("arm64", "6.1.0-50-arm64", {}, "", ARM[:2] + ["-cpu", "max"]),
    "arm64-7.2-damon": ("arm64", "7.2.13-arm64", {}, "damon_stat.enabled=1", ARM),
    "arm64-7.2-pkvm": ("arm64", "7.2.13-arm64", {}, NODAMON + " kvm-arm.mode=protected", ARM),
    "arm64-7.2": ("arm64", "7.2.13-arm64", {}, NODAMON, ARM),
    "arm64-7.2-16k": ("arm64", "7.2.13-arm64-16k", {}, NODAMON, ARM[:2] + ["-cpu", "max"]),
    "ppc64el-6.1": ("ppc", "6.1.0-50-powerpc64le", {}, "", PPC),
    "ppc64el-6.12-64k": ("ppc", "6.12.107+deb13-powerpc64le-64k", {}, "", PPC),
    "ppc64el-6.12": ("ppc", "6.12.107+deb13-powerpc64le", {}, "", PPC),
    "ppc64el-7.2-64k": ("ppc", "7.2.13-powerpc64le-64k", {}, NODAMON, PPC),
    "ppc64el-7.2": ("ppc", "7.2.13-powerpc64le", {}, NODAMON, PPC),
}
ARCH = {  # qemu, console, modules, mask of the output address in a leaf, in a table entry, RAM base, byte order, program
    "x86": ("qemu-system-x86_64", "ttyS0", ["kvm-amd"], 0xFFFFFFFFFF000, 0xFFFFFFFFFF000, 0, "<u8", "x86_64"),
    "arm64": ("qemu-system-aarch64", "ttyAMA0", [], 0xFFFFFFFFF000, 0xFFFFFFFFF000, 0x40000000, "<u8", "aarch64"),
    "riscv": ("qemu-system-riscv64", "ttyS0", ["kvm"], 0x3FFFFFFFFFFC00, 0x3FFFFFFFFFFC00, 0x80000000, "<u8", "riscv64"),
    "ppc": ("qemu-system-ppc64", "hvc0", ["kvm-hv"], 0x01FFFFFFFFFFF000, 0x01FFFFFFFFFFFF00, 0, ">u8", "ppc64le"),
}
LOOKS = """fault ksm ksm_reread ksm_write idle idle_touch dirty_on dirty_write dirty_get dirty_off dirty_off_write
mprotect_ro mprotect_ro_read dontneed zeropage mmio slot_add_ro slot_move slot_del huge huge_dirty huge_dirty_write
munmap slot_add slot_bad exit""".split()


def kernel_image(kdir, arch):
    src = next(p for p in (kdir / "t").rglob("vmlinu*") if p.is_file())
    data = src.read_bytes()
    if arch == "arm64" and data[4:8] == b"zimg":  # EFI zboot: the payload is the Image
        off, size = struct.unpack_from("<II", data, 8)
        kind = data[24:32].split(b"\0")[0]
        payload = data[off : off + size]
        if kind == b"gzip":
            image = gzip.decompress(payload)
        elif kind == b"xz":
            image = lzma.decompress(payload)
        else:
            image = subprocess.run(["zstd", "-dc"], input=payload, stdout=subprocess.PIPE, check=False).stdout
        out = kdir / "Image"
        out.write_bytes(image)
        return out
    return src


def initrd(kdir, arch, program, wanted, margs):
    root = kdir / "root"
    shutil.rmtree(root, ignore_errors=True)
    (root / "mods").mkdir(parents=True)
    for d in ("dev", "proc", "sys"):
        (root / d).mkdir()
    shutil.copy(LAB / "src" / f"lab-{program}", root / "init")
    subprocess.run(["mknod", root / "dev/console", "c", "5", "1"], check=True)
    have = {p.stem.replace("_", "-"): p for p in (kdir / "t").rglob("*.ko")}
    order = []

    def need(mod):
        mod = mod.replace("_", "-")
        if mod in order:
            return
        if mod not in have:
            print("module not unpacked:", mod, file=sys.stderr)
            return
        deps = subprocess.run(["/sbin/modinfo", "-F", "depends", have[mod]], capture_output=True, text=True).stdout.strip()
        for d in filter(None, deps.split(",")):
            need(d)
        order.append(mod)

    for m in wanted:
        need(m)
    lines = []
    for m in order:
        shutil.copy(have[m], root / "mods" / f"{m}.ko")
        lines.append(f"{m}.ko {margs.get(m, '')}".strip())
    (root / "mods/order").write_text("\n".join(lines) + "\n")
    cpio = kdir / "initrd"
    cpio.write_bytes(subprocess.run("find . | cpio -o -H newc --quiet", shell=True, cwd=root, stdout=subprocess.PIPE, check=True).stdout)
    return cpio


class Ram:
    def __init__(self, path, arch, ps):
        _, _, _, self.leaf, self.table, self.base, dtype, _ = ARCH[arch]
        self.arch, self.ps, self.shift = arch, ps, ps.bit_length() - 1
        self.words = np.memmap(path, dtype=dtype, mode="r")
        self.stride = 256 if (arch == "ppc" and ps == 65536) else (4096 if arch == "ppc" else ps)
        if arch == "arm64":
            self.leaf &= ~(ps - 1)

    def read(self, pa, n=4):
        i = (pa - self.base) // 8
        return [int(x) for x in self.words[i : i + n]]

    def tables(self, pfns, strict, start=0):
        n = 4
        view = self.words.reshape(-1, self.stride // 8)[:, start : start + n].astype("u8")
        if view.shape[1] < n:
            return []
        sh = 10 if self.arch == "riscv" else self.shift
        want = [p << sh for p in pfns] + [(pfns[0] + i) << sh for i in range(len(pfns), n)]
        ok = (view[:, 0] & self.leaf) == want[0]
        rest = view[ok]
        idx = np.nonzero(ok)[0]
        found = []
        for j, row in zip(idx, rest):
            same = [(int(row[k]) & self.leaf) == want[k] for k in range(n)]
            empty = [int(row[k]) in (0, 1 << 63 if self.arch == "x86" else 0) for k in range(n)]
            good = all(same) if strict else all(s or e for s, e in zip(same, empty))
            if good and int(row[0]) & ~self.leaf:
                found.append(int(j) * self.stride + self.base)
        return found

    def filled(self, pa):
        return sum(1 for x in self.read(pa, min(self.stride, 4096) // 8) if x)

    def like_table(self, e):
        if self.arch == "x86":
            return e & 1 and not e >> 63 and not e & 0x100 and not e & 0x40
        if self.arch == "riscv":
            return e & 0xFF == 1
        if self.arch == "arm64":
            return e & 0xFFF == 3 and not e >> 48
        return e >> 63 == 1 and not e & 0x4000000000000000

    def referrers(self, pa, levels=4):
        chain = []
        step = 1 << 22
        up = 4096 if self.arch == "ppc" else self.ps
        for _ in range(levels):
            hits = []
            for o in range(0, len(self.words), step):
                part = self.words[o : o + step].astype("u8")
                for k in np.nonzero((part & self.table) == (pa >> 2 if self.arch == "riscv" else pa))[0]:
                    e = int(part[k])
                    if e & 0xFF:
                        hits.append(((o + int(k)) * 8 + self.base, e))
            if not hits:
                break
            # first the one where the tour's parents stand: entry 0 or 1 of a table (0x40 at 16 KiB pages)
            hits.sort(key=lambda h: (not self.like_table(h[1]), h[0] & (up - 1) not in (0, 8, 0x100)))
            chain.append([[hex(a), hex(e)] for a, e in hits[:3]])
            pa = hits[0][0] & ~(up - 1)
        return chain


def main():
    name = sys.argv[1]
    arch, kname, margs, extra, machine = CONFIGS[name]
    qemu, tty, wanted, *_rest, program = ARCH[arch]
    kdir = LAB / "k" / kname
    ramfile = Path(f"/dev/shm/lab-{name}.ram")
    ramfile.unlink(missing_ok=True)
    kernel = kernel_image(kdir, arch)
    rd = initrd(kdir, arch, program, wanted, margs)
    m = list(machine)
    m[1] += ",memory-backend=ram"
    cmd = ["nice", "-n", "10", qemu, *m, "-m", "1G", "-smp", "1", "-accel", "tcg",
           "-object", f"memory-backend-file,id=ram,size=1G,mem-path={ramfile},share=on",
           "-nodefaults", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
           "-kernel", str(kernel), "-initrd", str(rd),
           "-append", f"console={tty} loglevel=4 panic=-1 rdinit=/init {extra}"]
    log = (LAB / "logs" / f"{name}.log").open("w")
    log.write(" ".join(cmd) + "\n")
    q = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    t0 = time.time()
    buf = b""
    st = {"console": [], "events": [], "more": 0}
    marked, looked, params, hva = {}, {}, {}, {}
    info, ram, known = None, None, []
    dropped = 0

    def handle(line):
        nonlocal info, ram, st, known, dropped
        kind, _, text = line.partition(" ")
        if kind == "K":
            rel, mach, ps = text.split()
            info = (rel, mach, int(ps))
        elif kind == "P":
            k, v = text.split("=")
            params[k] = v
        elif kind == "#":
            f = text.split()
            if f and f[0].startswith("hva"):
                hva[f[0]] = int(f[1], 16)
        elif kind == "C":
            st["console"].append(text)
        elif kind == "M":
            st["more"] += int(text)
        elif kind == "E":
            g = re.match(r"\s*(.+)-\d+\s+(?:\(.*?\)\s+)?\[\d+\]\s+\S+\s+[\d.]+: (\w+): (.*)$", text)
            if not g:
                print("?? event", text, file=sys.stderr)
                return
            t = g[3].strip()
            if t.startswith("mmu notifier"):
                here = []

                def norm(x):
                    a = int(x[0], 16)
                    for k, b in hva.items():
                        size = (4 << 20) if k == "hva4" else 16 * info[2]
                        if b <= a <= b + size:
                            here.append(1)
                            return f"{k}+{(a - b) // info[2]:#x}p"
                    here.append(0)
                    return x[0]

                t = re.sub(r"(?:0x)?[0-9a-f]{12,16}", norm, t)
                if not any(here):
                    dropped += 1
                    return
            st["events"].append({"task": g[1], "event": g[2], "text": t})
        elif kind == "S":
            marked[text] = st
            st = {"console": [], "events": [], "more": 0}
        elif kind == "L":
            stage, *pairs = text.split()
            pf = {int(p.split(":")[0], 16): int(p.split(":")[1], 16) for p in pairs}
            if ram is None:
                ram = Ram(ramfile, arch, info[2])
            pfns = list(pf.values())
            first = next(iter(pf))
            tabs = []
            if first == 0:
                if stage == "fault":
                    tabs = sorted(ram.tables(pfns, strict=True), key=ram.filled)
                    known = tabs[:1]
                else:
                    tabs = list(known)
                    tabs += [t for t in ram.tables(pfns, strict=True) if t not in tabs]
            else:
                per = {"x86": 512, "arm64": info[2] // 8, "riscv": 512, "ppc": 32 if info[2] == 65536 else 512}[arch]
                if pfns[0]:
                    starts = {first % per} | ({(first * info[2] >> {4096: 21, 16384: 25, 65536: 21 if arch == "ppc" else 29}[info[2]]) % (512 if arch == "ppc" else info[2] // 8)} if first * info[2] == 0x40000000 else set())
                    for s0 in sorted(starts):
                        if s0 + 4 <= ram.stride // 8:
                            tabs += [t + 8 * s0 for t in ram.tables(pfns, strict=False, start=s0)]
            lt = []
            for t in tabs:
                d = {"pa": hex(t), "entries_from_first_gfn": [hex(x) for x in ram.read(t)]}
                if stage in ("fault", "huge"):
                    d["referenced_by"] = ram.referrers(t)
                lt.append(d)
            looked[stage] = ({hex(g): hex(p) for g, p in pf.items()}, lt)
            q.stdin.write(b"\n")
            q.stdin.flush()
        elif kind == "Q":
            return True
        return False

    done = False
    while not done and time.time() - t0 < 240:
        r, _, _ = select.select([q.stdout], [], [], 1)
        if not r:
            if q.poll() is not None:
                break
            continue
        chunk = os.read(q.stdout.fileno(), 65536)
        if not chunk:
            break
        buf += chunk
        while b"\n" in buf:
            raw, buf = buf.split(b"\n", 1)
            line = raw.decode(errors="replace").rstrip("\r")
            log.write(line + "\n")
            log.flush()
            at = line.find("@")
            if at >= 0 and re.match(r"@[KP#CMESLQ]( |$)", line[at:]):
                done = handle(line[at + 1 :]) or done
    try:
        q.wait(10)
    except subprocess.TimeoutExpired:
        q.kill()
    ram = None
    if "keep" not in sys.argv[2:]:
        ramfile.unlink(missing_ok=True)
    if not info or "fault" not in marked:
        sys.exit(f"{name}: nothing recorded, see logs/{name}.log")
    stages = []
    for s in LOOKS:
        e = marked.get(s, {"console": [], "events": [], "more": 0})
        d = {"name": s}
        if s in looked:
            d["host_pfns"], d["leaf_tables"] = looked[s]
        d |= {"console": e["console"], "events": e["events"][:60]}
        over = len(e["events"]) - len(d["events"]) + e["more"]
        if over:
            d["events_omitted"] = over
        stages.append(d)
    for mod, args in margs.items():  # what was asked for, beside the two that every recording of x86 states
        key, value = args.split("=")
        params.setdefault(f"{mod.replace('-', '_')}.{key}", value)
    usual = {"x86": X86, "arm64": ARM, "ppc": PPC, "riscv": RISCV}[arch]
    unusual = ([" ".join(machine[2:])] if machine != usual else []) + extra.replace("lab_touch=1", "pages active on the LRU beforehand").split("  ")
    how = ", ".join(["QEMU 7.2 TCG, 1 CPU, 1 GiB", *filter(None, unusual)])
    doc = {"arch": arch, "machine": info[1], "kernel": info[0], "page_size": info[2], "module_params": params,
           "scenario": "tour", "recorded_with": how, "stages": stages}
    (LAB / "out" / f"{name}.json").write_text(json.dumps(doc, indent=1) + "\n")
    print(f"{name}: {info} {'complete' if done else 'INCOMPLETE'} {time.time() - t0:.0f}s, foreign hva events dropped {dropped}")


main()
