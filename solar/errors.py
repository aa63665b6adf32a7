"""The one exception that a user's mistake raises: one line, what is wrong and what to do."""


class SolarError(ValueError):
    """Bad input. The message is a single line; programs print it and exit with status 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
