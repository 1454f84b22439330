"""Tests on older versions of transformers: `make test-matrix`, and the oldest one in `make test`.

Each version has an environment with the packages of the one that nox runs in, and its own transformers.
"""

import datetime
import re
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nox


nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"

MINORS = [f"5.{minor}" for minor in range(13, 25)]  # docs/compatibility.md says why not older ones
FILES = """
    init configuration_omnifusion modeling_omnifusion generation saving processing_omnifusion
    image_processing_omnifusion prompt_paths stages train pipeline peft remote_code versions frozen_checkpoints
""".split()
# Each extra and the page whose code needs it alone. vLLM has an environment of its own, `make test-vllm`.
EXTRAS = {
    "data": "data",
    "lora": "peft",
    "trl": "trl",
    "quantization": "quantization",
    "plot": "training",
    "eval": "evaluation",
    "serve": "serving",
    "demo": "demo",
    "open_clip": "conversion",
}
TORCH = ("torch", "torch-*", "torchgen", "functorch", "nvidia*", "triton*", "cuda*")
RESULTS, TABLE = Path(".nox/results"), Path("docs/compatibility.md")


def environment(session: nox.Session, minor: str):
    """Installs the newest patch of a minor version."""
    link = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
    (site_packages(session) / "shared.pth").write_text(link, encoding="utf-8")
    session.install(f"transformers=={minor}.*")


def site_packages(session: nox.Session) -> Path:
    command = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(session.run("python", "-c", command, silent=True).strip())


def run_tests(session: nox.Session, files: list[str], *options: str):
    paths = [str(path) for name in files for path in Path("tests").rglob(f"test_{name}.py")]
    session.run("python", "-m", "pytest", *paths, *options, env={"OMP_NUM_THREADS": "1"})


@nox.session
def oldest(session: nox.Session):
    """The short form on the oldest version; pytest has run it on the newest before."""
    environment(session, MINORS[0])
    run_tests(session, ["init", "versions", "remote_code", "modeling_omnifusion", "saving"])


@nox.session
@nox.parametrize("minor", MINORS)
def matrix(session: nox.Session, minor: str):
    environment(session, minor)
    run_tests(session, FILES, f"--junitxml={RESULTS / minor}.xml", "-p", "no:cacheprovider")


@nox.session(reuse_venv=False)
@nox.parametrize("extra", list(EXTRAS))
def extras(session: nox.Session, extra: str):
    """The code of an extra's page in a fresh environment; only torch (5 GB) is linked from the environment of nox."""
    installed, fresh = Path(sysconfig.get_path("purelib")), site_packages(session)
    for path in (path for pattern in TORCH for path in installed.glob(pattern)):
        (fresh / path.name).symlink_to(path)
    session.install("--constraint", "constraints.txt", "--editable", f".[{extra}]", "pytest", "pytest-timeout")
    session.run("python", "-m", "pytest", "tests/test_docs.py", "-k", f"as_written and {EXTRAS[extra]}.md")


@nox.session(python=False)
def table(session: nox.Session):
    """Writes the results of `matrix` to docs/compatibility.md."""
    counts = {minor: count(RESULTS / f"{minor}.xml") for minor in MINORS if (RESULTS / f"{minor}.xml").exists()}
    head = "| test file | " + " | ".join(counts) + " |\n|---|" + "---|" * len(counts) + "\n"
    rows = [
        f"| `test_{name}.py` | {' | '.join(found.get(name, '–') for found in counts.values())} |" for name in FILES
    ]
    begin, end = f"<!-- matrix {datetime.date.today()} -->\n", "\n<!-- /matrix -->"
    page = TABLE.read_text(encoding="utf-8")
    page = re.sub(r"<!-- matrix .*?<!-- /matrix -->", lambda _: begin + head + "\n".join(rows) + end, page, flags=re.S)
    TABLE.write_text(page, encoding="utf-8")


def count(report: Path) -> dict[str, str]:
    """`{"saving": "17"}`: passed tests of each file, with failed and skipped ones where there are any."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname").rpartition(".test_")[2]
        states = {child.tag for child in case}
        state = "failed" if states & {"failure", "error"} else "skipped" if "skipped" in states else "passed"
        found.setdefault(name, {"passed": 0, "failed": 0, "skipped": 0})[state] += 1
    return {
        name: str(each["passed"]) + "".join(f", {each[s]} {s}" for s in ("failed", "skipped") if each[s])
        for name, each in found.items()
    }
