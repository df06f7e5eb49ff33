"""What ends a command of several processes while it shows how far it is."""

import pytest

from perceptual_mae.cli.output import showing_progress
from perceptual_mae.errors import LostProcessError

BROKEN = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3"


@pytest.mark.parametrize("is_main_process", [True, False])
def test_a_lost_process_is_a_line_and_no_traceback(is_main_process: bool) -> None:
    with (
        pytest.raises(LostProcessError, match="another process of the command was lost"),
        showing_progress(is_main_process=is_main_process),
    ):
        raise RuntimeError(BROKEN)


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), showing_progress(is_main_process=True):
        raise RuntimeError("size mismatch")
