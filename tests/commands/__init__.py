"""The commands as an operator meets them: what they print, their exit codes, and the rows behind."""

import json
from typing import Any, NamedTuple

from click.testing import CliRunner, Result

from streamorch.__main__ import main


class Shell(NamedTuple):
    """`streamorch` in this process, on one database."""

    database_url: str

    def run(self, *arguments: object, **environ: str) -> Result:
        """The result, whatever it is; an exception that no operator should see is raised."""
        env = {"DATABASE_URL": self.database_url, "API_SECRET": None, **environ}
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="streamorch", env=env)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def text(self, *arguments: object, **environ: str) -> str:
        """What it prints, when all is well."""
        result = self.run(*arguments, **environ)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout

    def json(self, *arguments: object, **environ: str) -> Any:
        return json.loads(self.text(*arguments, "--json", **environ))

    def failure(self, *arguments: object, code: int = 1, **environ: str) -> str:
        """The one line with which it fails, or the last of a usage error."""
        result = self.run(*arguments, **environ)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        lines: list[str] = result.stderr.splitlines()
        assert code == 2 or len(lines) == 1, lines
        return lines[-1]
