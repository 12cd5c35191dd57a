"""What values of a Modelfile are made of: pieces of its grammar, and characters that its parser drops."""

PIECES = ['"', '"""', '""', "\n", " ", "\t", "#", "a", "{{", "}}", "SYSTEM ", "FROM x", "é", "\U0001f642", "\\n", "'"]
HOSTILE = [*PIECES, "\r", "\r\n", "\u00a0", "\u200b", "\u3000", "\x07", "\x00", "\ufeff"]
