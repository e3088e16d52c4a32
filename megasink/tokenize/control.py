"""Other names for control tokens, so that text that spells out the usual ones (`<s>` of HTML) is text to gigatoken."""

# Private use, which no language has; all names of one length begin with the same byte, which is quick to look for.
_OF_THREE_BYTES, _OF_FOUR_BYTES = 0xE000, 0x100000
_MOST = 0x1000


def with_rare_names(model: bytes, control_tokens: tuple[str, ...]) -> tuple[bytes, list[str]]:
    """A SentencePiece model in which control tokens have rare names, and all their names, in the same order.

    A new name has as many bytes as the old one, so that no length in the file changes. A token that is not found
    exactly once, or is too short, keeps its name. Text that spells out the new names needs the same care as before.
    """
    names = list(control_tokens)
    for number, name in enumerate(control_tokens[:_MOST]):
        old = name.encode("utf-8")
        if not 3 <= len(old) < 128:  # a length up to 127 is one byte in the file
            continue
        first = chr((_OF_THREE_BYTES if len(old) == 3 else _OF_FOUR_BYTES) + number)
        new = first + "x" * (len(old) - len(first.encode("utf-8")))
        field = b"\n" + bytes([len(old)]) + old + b"\x15"  # a piece's text, and the tag of its score
        if model.count(field) == 1:
            model = model.replace(field, field[:2] + new.encode("utf-8") + field[-1:])
            names[number] = new
    return model, names
