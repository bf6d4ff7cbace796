"""The xz files inside the package, and what to say when one of them is missing or damaged."""

import lzma
from pathlib import Path


FILES = Path(__file__).with_name("files")


def unpack(name: str) -> bytes:
    """Decoded content of `jaxmodels/data/embedded/files/<name>`.

    Raises:
        FileNotFoundError: the package was installed without its data.
        ValueError: the file is not what `tools/build_data.py` wrote.
    """
    path = FILES / name
    try:
        return lzma.decompress(path.read_bytes(), format=lzma.FORMAT_XZ)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the data of the package must be installed with it; {_way_out(path)}"
        ) from error
    except (lzma.LZMAError, EOFError) as error:
        raise damaged(name, f"it must be a whole xz file ({error})") from error


def damaged(name: str, reason: str) -> ValueError:
    """The error for a data file which breaks the rule named in `reason`."""
    return ValueError(f"{reason}; {_way_out(FILES / name)}")


def _way_out(path: Path) -> str:
    again = "install the package again, or write the file with `python tools/build_data.py`"
    return f"got path={str(path)!r}; {again}"
