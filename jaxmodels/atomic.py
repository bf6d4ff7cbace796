"""Files that are written whole or not at all."""

import secrets
from pathlib import Path


class atomic_write:
    """A temporary path beside `path`; what the block writes there takes its place if it ends without an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary.touch(exist_ok=False)
        self.mode = (
            self.temporary.stat().st_mode
        )  # that of any new file of the user; safetensors makes its own
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.temporary.chmod(self.mode)
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)
