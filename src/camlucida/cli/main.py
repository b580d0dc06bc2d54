"""The entry point: kind where typer and rich are missing, and quick, for torch waits its turn."""

import io
import sys
from collections.abc import Sequence

_EXTRA = ("typer", "rich", "click", "shellingham")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line on these words, or on those of the process.

    Raises: SystemExit, with one of the statuses of `camlucida.cli.app`.

    >>> try:
    ...     main(["explain"])
    ... except SystemExit as end:
    ...     end.code
    2
    """
    try:
        from camlucida.cli.app import app
    except ModuleNotFoundError as fault:
        if (fault.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write(f"error: the command line needs {fault.name}: pip install camlucida[cli]\n")
        raise SystemExit(2) from None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no · or × still gets its answer
    app(None if words is None else list(words), prog_name="camlucida")


if __name__ == "__main__":
    main()
