"""What README.md and the pages of docs/ print runs as printed.

Python blocks of a page run one after another and share their names. Commands of bash blocks run in
the same folder, in this process; one that cannot run here stands under `<!-- not run: why -->`, and
its arguments are parsed all the same. YAML blocks are read, and their settings built.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from torch.distributed.elastic import rendezvous

from kronos_qlib.cli.main import build_parser, main
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.pipeline.stages import StagesConfig
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.records.backtest_record import BacktestConfig
from kronos_qlib.settings import from_mapping
from kronos_qlib.signals.signal_settings import SignalsConfig

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)```", re.DOTALL
)
SECTIONS = {
    "sampling": SamplingConfig,
    "training": StagesConfig,
    "signals": SignalsConfig,
    "backtest": BacktestConfig,
}
"""Mappings of a workflow that are held against their class wherever a page shows one."""
FOREIGN = {"cp", "make", "mlflow", "pip", "python3", "qrun", "source", "torchrun", "accelerate"}
"""Programs that are named and not run here."""
PRINTED = {
    "README.md": ("paths of 10 bars", "calibrated on A-shares", "Name: score"),
    "docs/how-to/forecast.md": ("close", "<Forecast SYM0001: 100 paths of 10 bars"),
    "docs/how-to/finetune.md": ("Name: score",),
}


@dataclass(frozen=True)
class Block:
    kind: str
    code: str
    why: str | None
    """Why it is not run."""


def blocks_of(text: str) -> list[Block]:
    return [Block(one["kind"], one["code"], one["why"]) for one in BLOCK.finditer(text)]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def with_kinds(*kinds: str) -> list[Path]:
    return [
        path
        for path in PAGES
        if any(block.kind in kinds for block in blocks_of(path.read_text(encoding="utf-8")))
    ]


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    """A folder like this clone, with a small demo market and bars of one's own."""
    folder = tmp_path_factory.mktemp("clone")
    made = make_market(MarketConfig(instruments=8, sectors=2))
    write_provider(
        made.bars, folder / "demo" / "market", beside={"bars": made.bars}, benchmark="MEAN"
    )
    made.bars.to_csv(folder / "bars.csv", index=False)
    for name in ("workflows", "data_prep"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture
def clone(market, tmp_path, monkeypatch) -> Path:
    """A copy for one page, whose commands write into it."""
    folder = tmp_path / "clone"
    shutil.copytree(market, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KRONOS_MLFLOW_URI", "sqlite:///mlflow.db")
    return folder


@pytest.mark.parametrize("path", with_kinds("python", "bash"), ids=named)
def test_the_examples_run(path, clone, capsys):
    names: dict[str, object] = {}
    for number, block in enumerate(blocks_of(path.read_text(encoding="utf-8"))):
        if block.kind == "python" and block.why is None:
            script = clone / f"example{number}.py"
            script.write_text(block.code, encoding="utf-8")
            names |= runpy.run_path(str(script), init_globals=names)
        elif block.kind == "bash":
            for words in commands_in(block.code):
                if block.why is None:
                    assert run(words) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"
                else:
                    check_arguments(words)
    printed = capsys.readouterr().out
    for text in PRINTED.get(named(path), ()):
        assert text in printed


def commands_in(code: str) -> list[list[str]]:
    """Its lines as words, without comments and with continued lines joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(words: list[str]) -> int:
    program, *rest = words
    if program == "kronos-qlib":
        return main(rest)
    assert program == "python", f"{program} is not run here: say why, <!-- not run: why -->"
    if rest[0] == "-c":
        exec(compile(rest[1], "<-c>", "exec"), {})
        return 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", rest)
        try:
            runpy.run_path(rest[0], run_name="__main__")
        except SystemExit as done:
            return int(done.code or 0)
    return 0


def check_arguments(words: list[str]) -> None:
    """Whether a command that is not run here is one, and takes what the page gives it."""
    if ">" in words:  # the shell's
        words = words[: words.index(">")]
    if "kronos_qlib.cli" in words:  # after torchrun and its own flags
        words = ["kronos-qlib", *words[words.index("kronos_qlib.cli") + 1 :]]
    program, *rest = words
    if program == "kronos-qlib":
        build_parser().parse_args(rest)
    elif program == "export":
        launcher = Path(rendezvous.__file__).parent
        readers = [*(ROOT / "workflows").glob("*.yaml"), *launcher.glob("*.py")]
        known = "\n".join(file.read_text("utf-8") for file in readers)
        for word in rest:
            assert word.partition("=")[0] in known, f"no workflow, nor torchrun, reads {word}"
    elif program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", targets, re.MULTILINE) for target in rest)
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), rest[0]
    else:
        assert program in FOREIGN, program
        if program == "qrun":
            assert (ROOT / rest[0]).is_file(), rest[0]


@pytest.mark.parametrize("path", with_kinds("yaml"), ids=named)
def test_the_settings_of_yaml_examples_are_known(path):
    for block in blocks_of(path.read_text(encoding="utf-8")):
        if block.kind == "yaml":
            check_settings(yaml.safe_load(block.code))


def check_settings(node: object) -> int:
    """Build every section of SECTIONS below a mapping; how many there were."""
    if isinstance(node, list):
        return sum(check_settings(one) for one in node)
    if not isinstance(node, dict):
        return 0
    found = 0
    for key, value in node.items():
        if key in SECTIONS and isinstance(value, dict):
            from_mapping(SECTIONS[key], value, where=key)
            found += 1
        else:
            found += check_settings(value)
    return found


def test_a_page_with_a_wrong_setting_or_flag_is_seen():
    with pytest.raises(ValueError, match="epochs"):
        check_settings({"task": {"model": {"training": {"predictor": {"epoch": 3}}}}})
    assert check_settings([{"kwargs": {"sampling": {"paths": 2}}}]) == 1
    with pytest.raises(SystemExit):
        check_arguments(shlex.split("kronos-qlib compare kronos --no-such-flag"))
    with pytest.raises(AssertionError):
        check_arguments(["export", "KRONOS_NO_SUCH_NAME=1"])
    with pytest.raises(AssertionError):
        run(["qrun", "workflows/workflow_kronos.yaml"])


def test_every_page_has_blocks_of_known_kinds():
    kinds = {block.kind for path in PAGES for block in blocks_of(path.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "bash", "yaml", "text"}, "what is it, and who runs it?"
