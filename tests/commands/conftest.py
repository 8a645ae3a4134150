"""damcli called in this process, as a command line."""

import signal

import pytest

from damcli.cli import main


@pytest.fixture
def run_here(capsys):
    """Returns `run_here(*arguments)`: the exit code, stdout and stderr of damcli in this process."""

    def run(*arguments):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run
