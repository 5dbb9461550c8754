"""The parts that the programs share."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - said before a part is read, whose syntax is newer
    sys.exit("this needs Python 3.10 or newer, and this is Python " + sys.version.split()[0])
