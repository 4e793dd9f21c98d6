"""The command line.  Exit status 0 when the run could be done, whatever its outcome; 2 and one line for a mistake."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import __version__
from .commands.booting import add_boot, add_resume, add_snapshot
from .commands.machines import MACHINE_HELP, add_machine
from .commands.progress import end_progress, progress
from .commands.reporting import add_dump, add_report
from .errors import BadConfig, BadMachine, HvlabError
from .linux.command import add_linux
from .spec.bits import parse_number

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """`hvlab ...`: returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except HvlabError as e:
        end_progress()
        print("hvlab:", " ".join(str(e).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        end_progress()
        print("hvlab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as e:
        print(f"hvlab: the output cannot be written: {e.strerror or e}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would try once more when it ends
        return 2
    return 0


_ABOUT = "Boots a thin hypervisor in an emulated PC and shows what its remapping units let devices do."


class _Parser(argparse.ArgumentParser):
    """One line for a wrong command line, too."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Of `--option=--` argparse would make an empty list, whatever the option's type."""
        if empty := [a for a in args or () if a.startswith("--") and a.endswith("=--")]:
            self.error(f"{empty[0]}: -- is no value of an option")
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hvlab", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"hvlab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Callable[[argparse.Namespace], None] | None, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add_boot(add("boot", None, "Boots a machine and says how it went."))
    add_resume(add("resume", None, "Restores a machine from a snapshot, lets it go on, and says how it went."))
    add_snapshot(add("snapshot", None, "Tells of snapshots, the files that --save writes."))
    attack = add("attack", _attack, "Lets the guest attack the core and says what came of it.")
    attack.add_argument("attack", metavar="NAME", help="steal-key, overwrite-stub, open-nested-page, rewrite-iommu-entry, "
                        "redirect-vmcb, clear-te, forge-interrupt or before-te")
    add_machine(attack)
    attack.add_argument("--guest", metavar="NAME", help=argparse.SUPPRESS)
    attack.add_argument("--device", metavar="DEVICE", help="edu or nvme: the device that is turned against the core")
    attack.add_argument("--json", action="store_true", help="one JSON object; addresses are integers, bytes hex")
    matrix = add("matrix", _matrix, "Runs every attack under every policy.")
    matrix.add_argument("machine", metavar="MACHINE", help=MACHINE_HELP)
    matrix.add_argument("--device", metavar="DEVICE", help="edu or nvme")
    matrix.add_argument("--policy", action="append", metavar="NAME", help="this policy only (may be given several times)")
    matrix.add_argument("--attack", action="append", metavar="NAME", help="this attack only (may be given several times)")
    matrix.add_argument("--guest", metavar="NAME", help=argparse.SUPPRESS)
    matrix.add_argument("--json", action="store_true", help="one JSON object")
    doctor = add("doctor", _doctor, "Boots a machine under each policy: what is wrong with it, whose fault that is, what mends it.")
    doctor.add_argument("machine", metavar="MACHINE", help=MACHINE_HELP)
    doctor.add_argument("--guest", metavar="NAME", help="whose verdicts: lab (the default), or a Linux by its name, as of `hvlab boot`")
    doctor.add_argument("--json", action="store_true", help="one JSON object: machine, verdicts, problems, unknown")
    collect = add("collect", _collect, "Writes what is needed to rebuild this Linux machine into an archive, and says what that is.")
    collect.add_argument("-o", "--output", type=Path, default=Path("hvlab-machine.tar.gz"), metavar="FILE.tar.gz", help="the archive")
    collect.add_argument("--root", type=Path, metavar="DIR", help="a folder with a copy of /sys and the kernel's log as `dmesg`: taken "
                         "instead of this machine")
    collect.add_argument("--script", action="store_true", help="prints the shell script that does it, for a machine without Python")
    add_dump(add("dump", None, "Boots a machine and writes its remapping tables and registers."))
    add_report(add("report", None, "Boots a machine and writes a report of it: one HTML file that needs no network, or a PDF."))
    decode = add("decode", _decode, "Reads the domains out of dumped tables, or of a dump of memory.")
    decode.add_argument("tables", type=Path, metavar="TABLES.npz", help="or an ELF or LiME dump of memory")
    decode.add_argument("--root", required=True, type=_address, metavar="ADDR", help="host-physical address of a root table (RTADDR)")
    decode.add_argument("--raw", action="store_true", help="the file is memory from address 0 up, without any header")
    decode.add_argument("--json", action="store_true")
    _add_translate(add("translate", _translate, "Says what a remapping unit makes of DMA requests under dumped tables."))
    _add_look(add("look", _look, "Looks at memory from outside: a dump, or a running QEMU."))
    machines = add("machines", _machines, "Lists the machines that come with hvlab.")
    machines.add_argument("--json", action="store_true")
    _add_fleet(add("fleet", _fleet, "Runs the doctor over every archive, log and machine below a folder."))
    add_linux(commands)
    add("lab", _lab, "Opens the workbench in JupyterLab.")
    return parser


def _add_translate(command: argparse.ArgumentParser) -> None:
    command.add_argument("tables", type=Path, metavar="TABLES.npz")
    command.add_argument("--root", required=True, type=_address, metavar="ADDR", help="the root-table register RTADDR")
    command.add_argument("--requests", required=True, type=Path, metavar="FILE.jsonl",
                         help='a request a line: {"bdf": "00:02.0", "addr": 4096, "size": 8, "type": "read"}, or "write"; '
                              "size 0 is a zero-length access of one page, 1 GiB the largest")
    command.add_argument("--cap", type=_address, metavar="X", help="the unit's CAP register (default: 3 and 4 levels, 48 bits, "
                         "2 MiB and 1 GiB pages, zero-length reads)")
    command.add_argument("--ecap", type=_address, metavar="X", help="its ECAP register (default: pass-through, SNP and TM allowed)")
    command.add_argument("--haw", type=_width, metavar="N", help="host address width in bits (default: CAP.MGAW's)")
    command.add_argument("--ram", action="append", default=[], type=_range, metavar="START-END",
                         help="RAM that reads as zero where the file holds no page, half-open, in whole pages; the rest is absent memory")
    command.add_argument("--json", action="store_true", help="one JSON object a request; addresses are integers, ranges half-open")


def _add_look(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help="a memory dump (raw, ELF, LiME), or qemu:SOCKET for a QEMU with a QMP socket")
    command.add_argument("--root", type=_address, metavar="ADDR", help="host-physical address of a root table (RTADDR)")
    command.add_argument("--registers", type=Path, metavar="FILE", help="a dump's registers: Linux's iommu_regset, or registers.json")
    command.add_argument("--ram", action="append", default=[], type=_range, metavar="START-END", help="RAM of a raw dump, half-open")
    command.add_argument("--region", type=_range, metavar="START-END", help="is this out of reach of devices? half-open")
    command.add_argument("--linux", type=Path, metavar="FILE", help="a copy of dmar_translation_struct, to be compared with memory")
    command.add_argument("--consistent", action="store_true", help="pauses QEMU's guest while it is read")
    command.add_argument("--json", action="store_true", help="one JSON object; addresses are integers, ranges half-open")


def _add_fleet(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="FOLDER", help="its archives, folders of logs, kernel logs, .toml files")
    command.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder of the results (default: FOLDER's name with "
                         ".fleet, here); what is done there already is not done again")
    command.add_argument("--workers", type=int, metavar="N", help="processes on this machine (default: one a core)")
    command.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, tcp://HOST:PORT, whose workers do it instead")
    command.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="ends an item after this time (default: 300)")
    command.add_argument("--retry", action="store_true", help="examines those again that could not be examined before")
    command.add_argument("--json", action="store_true", help="the summary as one JSON object")


def _address(text: str) -> int:
    try:
        return parse_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no address like 0x78415000") from None


def _width(text: str) -> int:
    try:
        return parse_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bits like 39") from None


def _range(text: str) -> tuple[int, int]:
    start, dash, end = text.partition("-")
    try:
        run = parse_number(start), parse_number(end)
    except ValueError:
        run = 0, 0
    if not dash or not 0 <= run[0] < run[1] <= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no range like 0x100000-0x80000000")
    return run


def _must_be_lab(guest: str | None) -> None:
    if guest not in (None, "lab"):
        raise BadConfig("the attacks are the lab guest's, whose driver is the wicked one: leave out --guest (what root does by hand in a "
                        "Linux is in docs/linux.md)")


def _attack(options: argparse.Namespace) -> None:
    from .session import Machine
    from .vmm.config import Config, parse_settings
    _must_be_lab(options.guest)
    config = Config(**parse_settings(options.settings))  # type: ignore[arg-type]
    with Machine.load(options.machine) as machine:
        result = machine.attack(options.attack, config, options.device, progress())
    end_progress()
    print(json.dumps(result.to_json()) if options.json else result)


def _matrix(options: argparse.Namespace) -> None:
    from .inspect.matrix import matrix
    from .session import Machine
    _must_be_lab(options.guest)
    with Machine.load(options.machine) as machine:
        grid = matrix(machine, options.policy, options.attack, options.device, progress())
    end_progress()
    print(json.dumps(grid.report()) if options.json else grid)


def _doctor(options: argparse.Namespace) -> None:
    from .doctor import examine
    found = examine(options.machine, progress(), options.guest)
    end_progress()
    print(json.dumps(found.to_json()) if options.json else found)


def _collect(options: argparse.Namespace) -> None:
    from .sources.collect import SCRIPT, collect
    print(SCRIPT.read_text() if options.script else collect(options.output, options.root), end="" if options.script else "\n")


def _decode(options: argparse.Namespace) -> None:
    from .inspect.domains import decode
    from .inspect.dump import load_npz
    from .sources.dump import has_header, open_dump
    dumped = options.raw or has_header(options.tables)
    domains = decode(open_dump(options.tables) if dumped else load_npz(options.tables), options.root)
    print(json.dumps({"domains": domains.to_json()}) if options.json else domains)


def _translate(options: argparse.Namespace) -> None:
    from .inspect.dump import load_npz
    from .translate import GENERIC_CAP, GENERIC_ECAP, FilePages, FileUnit, answer_table, read_requests
    cap = GENERIC_CAP if options.cap is None else options.cap
    ecap = GENERIC_ECAP if options.ecap is None else options.ecap
    unit = FileUnit(FilePages(load_npz(options.tables), options.ram), options.root, cap, ecap, options.haw)
    answers = unit.answers(read_requests(options.requests))
    if not options.json:
        print(answer_table(list(answers)))
        return
    for answer in answers:
        print(json.dumps(answer.to_json()))


def _look(options: argparse.Namespace) -> None:
    from .outside import Outside
    from .sources.debugfs import parse_tables, read_text
    printed = parse_tables(read_text(options.linux), str(options.linux)) if options.linux else ()
    opened = Outside.open(options.source, options.root, options.region, options.ram, options.registers, options.consistent)
    with opened as outside, outside.look():
        differences = {unit.name: outside.compare(unit) for unit in printed}
        if options.json:
            compared = {"linux": {name: found.to_json() for name, found in differences.items()}} if printed else {}
            print(json.dumps(outside.to_json() | compared))
        else:
            print("\n\n".join(map(str, (outside, *differences.values()))))


def _fleet(options: argparse.Namespace) -> None:
    from .fleet import Work, run_fleet
    out = options.output or Path(f"{options.folder.resolve().name or 'root'}.fleet")
    report = run_fleet(options.folder, out, workers=options.workers, scheduler=options.scheduler, retry=options.retry,
                       work=Work(limit=options.limit))
    print(json.dumps(report.to_json()) if options.json else f"{report}\n\n{out / 'report.html'}")


def _machines(options: argparse.Namespace) -> None:
    from .sources import load, shipped
    rows = []
    for name, path in shipped().items():
        try:
            d = load(path)
            rows.append({"name": name, "ram_bytes": d.ram_bytes, "units": len(d.units), "source": d.source})
        except BadMachine as e:
            rows.append({"name": name, "ram_bytes": None, "units": None, "source": str(e)})
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        ram = f"{row['ram_bytes'] / (1 << 30):8.4g} GiB" if row["ram_bytes"] else "           ?"  # type: ignore[operator]
        print(f"{row['name']:28} {ram}  {row['units'] if row['units'] is not None else '?'} remapping units")


def _lab(_options: argparse.Namespace) -> None:
    import subprocess
    notebook = Path(__file__).resolve().parents[1] / "notebooks" / "00-workbench.ipynb"
    if not notebook.exists():
        raise HvlabError(f"{notebook} is missing: run hvlab from a checkout")
    as_root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    subprocess.run([sys.executable, "-m", "jupyterlab", *as_root, str(notebook)], check=False)


if __name__ == "__main__":
    sys.exit(main())
