"""Libraries that a source asks and that need not be there."""

from collections.abc import Iterator
from contextlib import contextmanager

from camlucida.errors import ModelError


@contextmanager
def imported(library: str, form: str, extra: str, advice: str) -> Iterator[None]:
    """Around the import of a library: where it fails, a `ModelError` says what to do about names like ``form``.

    >>> with imported("nowhere", "nowhere/…", "no", "install it anew"):
    ...     import nowhere
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: nowhere/… needs nowhere: pip install camlucida[no]
    """
    try:
        yield
    except ModuleNotFoundError as fault:
        raise ModelError(f"{form} needs {fault.name}: pip install camlucida[{extra}]") from fault
    except (ImportError, RuntimeError, OSError) as fault:  # compiled parts that were made for another PyTorch
        reason = " ".join(str(fault).split())[:200]
        raise ModelError(f"{library} cannot be imported ({reason}): {advice}.") from fault
