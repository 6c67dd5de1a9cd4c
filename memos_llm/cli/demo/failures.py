"""What ends the demo before its verdict."""


class DemoFailed(Exception):
    """The demo itself could not go on: a process did not start or ended, a command failed, a wait took too long."""


class Interrupted(Exception):
    """A signal asked the demo to end. `exit_code` is 128 + its number, as a shell would say."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number
