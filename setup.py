"""What setup.cfg cannot say: the wheel carries sql/, mediamtx/ and gunicorn.conf.py inside the package.

They stand at the top of the checkout, where they are read and edited, and are copied into the build alone.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TOP = Path(__file__).resolve().parent


def carried() -> list[str]:
    """The files, relative to the top of the checkout."""
    files = [TOP / "gunicorn.conf.py", *TOP.glob("sql/*.sql"), *TOP.glob("mediamtx/**/*")]
    return sorted(str(file.relative_to(TOP)) for file in files if file.is_file() and "__pycache__" not in file.parts)


class BuildWithFiles(build_py):  # type: ignore[misc]  # setuptools ships no types
    """build_py that also copies those files. An editable install finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in carried():
            target = Path(self.build_lib, "streamorch", name)
            self.mkpath(str(target.parent))
            self.copy_file(str(TOP / name), str(target))

    def get_source_files(self) -> list[str]:
        """What a source distribution must hold, so that a wheel can be built from it."""
        return [*super().get_source_files(), *carried(), "constraints.txt"]


setup(cmdclass={"build_py": BuildWithFiles})
