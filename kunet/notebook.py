"""One strict runner for notebooks: parameters are checked by name and type before a kernel starts.

papermill alone only warns of an unknown parameter and passes the string "true" for a boolean. A
notebook's cell tagged ``parameters`` declares them, one a line, ``name: type = default  # what it is``;
its metadata may hold ``kunet.quick``, the values for a run of under a minute. Tests, batch
jobs and the book all run notebooks through here.
"""

import ast
import asyncio
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import nbformat
import yaml
from pydantic import AllowInfNan, TypeAdapter, ValidationError

from kunet.recipes import explain, nearest

BATCH = "KUNET_BATCH"
"""Name in the environment of a kernel that runs as a job."""
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "Literal": Literal}


@dataclass(frozen=True)
class Parameter:
    """A declared parameter of a notebook."""

    name: str
    annotation: str
    default: Any
    help: str

    def check(self, value: Any) -> Any:
        """value as the declared type, or ValueError saying what came and what is allowed."""
        kind = eval(self.annotation, {"__builtins__": {}}, TYPES)  # names in TYPES only
        if kind is bool:
            value = {"true": True, "false": False}.get(str(value).lower(), value)
            if not isinstance(value, bool):
                raise ValueError(f"parameter {self.name!r} is {value!r}; it must be true or false ({self.help})")
        elif isinstance(value, bool):
            raise ValueError(f"parameter {self.name!r} is {value!r}, not {self.annotation} ({self.help})")
        try:
            return TypeAdapter(Annotated[kind, AllowInfNan(False)] if kind is float else kind).validate_python(value)
        except ValidationError as error:
            raise ValueError(
                f"parameter {self.name!r} is {value!r}, not {self.annotation}: {explain(error)} ({self.help})"
            ) from None

    def __str__(self) -> str:
        return f"{self.name}: {self.annotation} = {self.default!r}  # {self.help}"


def find(name: str | Path) -> Path:
    """The notebook of that path; or the chapter of that name ("14_training"), number ("14") or subject ("training").

    Chapters are those in ./notebooks, else those beside the package's source.
    Raises: ValueError, with the chapters there are.
    """
    path = Path(name)
    if path.suffix == ".ipynb" or path.is_file():
        return path
    for folder in (Path("notebooks"), Path(__file__).resolve().parent.parent / "notebooks"):
        chapters = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
        if chapters:
            break
    found = [p for p in chapters if str(name) in (p.stem, *p.stem.split("_", 1))]
    if len(found) != 1:
        names = [p.stem for p in chapters]
        raise ValueError(f"notebook {str(name)!r}: no such chapter{nearest(str(name), names)}; there are"
                         f" {', '.join(names) or 'none here'}, or give the path of an .ipynb file")  # fmt: skip
    return found[0]


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook. Raises: ValueError when it is missing or is none."""
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such notebook") from None
    except (OSError, UnicodeDecodeError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"{path}: not a readable notebook ({' '.join(str(error).split())[:120]})") from None


def parameters(path: Path) -> list[Parameter]:
    """The declared parameters. Raises: ValueError when a line is not ``name: type = default  # what it is``."""
    cells = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) > 1:
        raise ValueError(f"{path}: has {len(cells)} cells tagged parameters; one is allowed")
    lines = [line for cell in cells for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
    return [_parse(path, line) for line in lines if line != "from typing import Literal"]


def _parse(path: Path, line: str) -> Parameter:
    code, _, comment = line.partition("  # ")
    try:
        (node,) = ast.parse(code).body
        assert isinstance(node, ast.AnnAssign) and comment.strip()
        annotation = ast.unparse(node.annotation)
        found = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"'[^']*'|\"[^\"]*\"", "", annotation)))
        assert found <= set(TYPES)
        parameter = Parameter(ast.unparse(node.target), annotation, ast.literal_eval(node.value), comment.strip())
    except (SyntaxError, ValueError, AssertionError):
        raise ValueError(
            f"{path}: parameter line {line!r} must read 'name: type = default  # what it is', of {', '.join(TYPES)}"
        ) from None
    parameter.check(parameter.default)
    return parameter


def resolve(path: Path, given: dict[str, Any], quick: bool = False) -> dict[str, Any]:
    """The values to inject: quick ones if asked, then the given ones, all checked."""
    declared = {p.name: p for p in parameters(path)}
    values = dict(read(path).metadata.get("kunet", {}).get("quick", {})) if quick else {}
    values |= given
    for name in values:
        if name not in declared:
            raise ValueError(
                f"{path}: no parameter {name!r}{nearest(name, list(declared))}; it has {', '.join(declared) or 'none'}"
            )
    return {name: declared[name].check(value) for name, value in values.items()}


def read_file(path: Path) -> dict[str, Any]:
    """Parameters from a YAML file."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable YAML file ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; it must be a mapping of parameters")
    return content


def run(
    path: Path, output: Path, given: dict[str, Any] | None = None, quick: bool = False, progress: bool = True
) -> None:
    """Execute a notebook into ``output``, which keeps its outputs (and its error) even when it fails.

    What its cells print, and when each began and ended, goes to a .log file beside the output. The kernel finds
    ``BATCH`` in its environment, so that a notebook can tell that nobody watches.

    Args:
        progress: show a bar on a terminal, or a line for each cell elsewhere.
    Raises: ValueError before any work for wrong parameters; ValueError naming the cell when one fails;
    KeyboardInterrupt on SIGTERM or SIGUSR1, with the kernel ended and the output saved.
    """
    values = resolve(path, given or {}, quick)
    if output.resolve() == path.resolve():
        raise ValueError(f"{output}: is the notebook itself; give another -o")
    if output.suffix != ".ipynb" or output.is_dir():
        raise ValueError(f"{output}: what is written is one notebook; give -o a name that ends in .ipynb")
    if output.exists() and _own(output):
        raise ValueError(f"{output}: exists, and is no output of an earlier run; give another -o")
    import papermill  # takes a second: only those who run notebooks pay

    _pass_tuples()
    output.parent.mkdir(parents=True, exist_ok=True)
    bar = progress and sys.stderr.isatty()
    try:
        with _stoppable(), _logged(output.with_suffix(".log"), progress and not bar), _told():
            papermill.execute_notebook(
                str(path),
                str(output),
                values,
                kernel_name="python3",
                language="python",
                progress_bar=bar,
                cwd=str(path.parent),
                log_output=True,
            )
    except papermill.PapermillExecutionError as error:
        raise ValueError(
            f"{path}: cell {error.exec_count} failed with {error.ename}: {error.evalue}; the output is in {output}"
        ) from None


def _own(path: Path) -> bool:
    """Whether a file is a notebook of somebody's own: no output of a run, nor what is left of one that was killed."""
    try:
        return "papermill" not in read(path).metadata
    except ValueError:
        return False


def _pass_tuples() -> None:
    """Have papermill write a tuple as one; left alone it passes a string of it."""
    from papermill.translators import PythonTranslator, papermill_translators

    class Translator(PythonTranslator):
        @classmethod
        def translate(cls, value):
            if isinstance(value, tuple):
                return f"({''.join(f'{cls.translate(part)}, ' for part in value)})"
            return super().translate(value)

    papermill_translators.register("python", Translator)


@contextmanager
def _logged(path: Path, lines: bool) -> Iterator[None]:
    """papermill's messages into a file, and with ``lines`` the beginnings of cells to stderr."""
    logger = logging.getLogger("papermill")
    before = logger.level, logger.propagate
    handlers: list[logging.Handler] = [logging.FileHandler(path, mode="w", delay=False)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    if lines:
        handlers.append(logging.StreamHandler())
        handlers[1].addFilter(lambda record: record.getMessage().startswith("Executing Cell"))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def _told() -> Iterator[None]:
    """The kernel inherits the environment."""
    os.environ[BATCH] = "1"
    try:
        yield
    finally:
        del os.environ[BATCH]


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGUSR1 stop the run as Ctrl-C does (main thread only: elsewhere signals cannot be caught)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
