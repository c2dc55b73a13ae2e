"""InputError, the exception that commands report as one line with exit code 2."""


class InputError(ValueError):
    """Bad input from outside: a file, a line in it, an option.

    The message is one line that says what was wrong, where, and what is allowed. Commands print it and exit with
    code 2; libraries may catch it as a ValueError.
    """
