"""Compiles the kernels where it can, and leaves a note beside them of why it could not; pyproject.toml has the rest.

pip shows nothing of what a package's build prints, so the note is where `leptonc doctor` finds it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, PlatformError

PACKAGE = "runtime_edge.kernels"
NOTE = "not-compiled.note"  # `runtime_edge.kernels` reads it
MACHINES = ("x86_64", "AMD64")


class BuildKernels(build_ext):
    """Compiles each library of kernels, all of them optional, and notes the first reason why one is left out."""

    reason: str | None = None

    def run(self) -> None:
        super().run()
        if self.inplace:
            folder = Path(self.get_finalized_command("build_py").get_package_dir(PACKAGE))  # type: ignore[attr-defined]
        else:
            folder = Path(self.build_lib, *PACKAGE.split("."))
        note = folder / NOTE
        if self.reason is None:
            note.unlink(missing_ok=True)
        else:
            note.write_text(f"{self.reason}\n", encoding="utf-8")
            self.warn(f"Lepton's kernels are left out: {self.reason}")

    def build_extension(self, ext: Extension) -> None:
        try:
            if not sys.platform.startswith("linux") or platform.machine() not in MACHINES:
                raise PlatformError(f"they are for Linux on x86-64, and this is {sys.platform} on {platform.machine()}")
            super().build_extension(ext)
        except PlatformError as error:
            self.reason = self.reason or str(error)
            raise
        except CCompilerError:  # all that a compiler may raise
            self.reason = self.reason or self._compilers_reason()
            raise

    def _compilers_reason(self) -> str:
        """What is wrong with the compiler that setuptools chose: the variable CC, else the one Python was made with."""
        name = self.compiler.compiler_so[0]  # type: ignore[attr-defined]
        path = shutil.which(name)
        if path is None:
            return f"no C compiler was found at installation ({name})"
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = next(iter(shown.splitlines()), name)
        return f"the C compiler at installation could not compile them ({version})"


setup(cmdclass={"build_ext": BuildKernels})
