"""Damages files as disks, copies and people do."""

import pathlib
import random

KINDS = ("cut", "flipped", "emptied", "deleted", "swapped")
NOT_READ = ("lock", "lock.json", "error.log")  # what no result follows from


def candidates(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a run's folder that the run may read again."""
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name not in NOT_READ]
    return sorted(path for path in files if "tensorboard" not in path.parts)


def damage(workdir: pathlib.Path, seed: int) -> str:
    """Damages one file of a run's folder in one way, both by the seed; returns what was done."""
    draws = random.Random(seed)
    files = candidates(workdir)
    path, kind = draws.choice(files), KINDS[seed % len(KINDS)]
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: draws.randrange(len(content) or 1)])
    elif kind == "flipped" and content:
        flipped = bytearray(content)
        flipped[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(flipped)
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "deleted":
        path.unlink()
    elif kind == "swapped":
        alike = [other for other in files if other != path and other.suffix == path.suffix] or files
        other = draws.choice(alike)
        theirs = other.read_bytes()
        other.write_bytes(content)
        path.write_bytes(theirs)
    return f"{kind} {path.relative_to(workdir)}"


NASTY = (
    b"NaN", b"1e999", b"-1", b"0", b'""', b"null", b"[]", b"{}", b"true", b"1" * 5000, b'"\\ud800"', b"[" * 3000,
    b"\xff\xfe", b"\x00", b"9223372036854775808", b"0.5", b'"auto"', b'"../x"', b'"/etc/passwd"', b"\xef\xbb\xbf",
    b'"\\u0000"', b"\n", b"1e-400", b"{{", b"%}",
)  # fmt: skip


def mutate(content: bytes, draws: random.Random) -> bytes:
    """Returns a content that is changed in one to three places."""
    for _ in range(draws.randint(1, 3)):
        at, end = sorted(draws.randrange(len(content) + 1) for _ in range(2))
        end = min(end, at + draws.choice((1, 4, 16, 4096)))
        kind = draws.randrange(6)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + bytes([draws.randrange(256)]) + content[at + 1 :]
        elif kind == 2:
            content = content[:at] + content[end:]
        elif kind == 3:
            content = content[:end] + content[at:]
        elif kind == 4:
            content = content[:at] + draws.choice(NASTY) + content[end:]
        else:
            content = _with_other_value(content, draws)
    return content


def _with_other_value(content: bytes, draws: random.Random) -> bytes:
    """Puts a nasty value in the place of one that stands behind a colon, as in JSON."""
    colons = [at for at, byte in enumerate(content) if byte == ord(":")]
    if not colons:
        return content + draws.choice(NASTY)
    at = draws.choice(colons) + 1
    end = next((end for end in range(at, len(content)) if content[end] in b",}\n"), len(content))
    return content[:at] + draws.choice(NASTY) + content[end:]
