"""The one exception that commands turn into a clear line and exit code 2."""


class InputError(ValueError):
    """Bad input from outside: a file, a line in it, an option.

    The message is one line that says what was wrong, where, and what is allowed. Commands print it and exit with
    code 2; libraries may catch it as a ValueError.
    """
