"""Computes fingerprints of checkpoint folders: hashes that change when a file that a run reads is replaced."""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator

from rdjax.errors import UserError

BLOCK_BYTES = 4096
CONFIG_PATTERNS = ("config.json", "generation_config.json", "adapter_config.json")
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
)


def checkpoint_fingerprint(folder: pathlib.Path) -> str:
    """Returns one hash of a model's config, weights, tokenizer and chat templates.

    Raises:
      UserError: a weights file has no readable header.
    """
    return _hash([weights_fingerprint(folder).encode(), tokenizer_fingerprint(folder).encode()])


def weights_fingerprint(folder: pathlib.Path) -> str:
    """Returns a hash of the config and weights of a model or an adapter.

    Config files are read whole. Of every safetensors file the header is read whole, and of each tensor its first,
    middle and last 4 KiB: to hash the 16 GB of an 8B model takes as long as loading it, and what replaces a checkpoint
    in practice (training, merging an adapter, another conversion) changes nearly every number of a tensor. An edit of
    a few numbers outside these blocks is not seen.

    Raises:
      UserError: a weights file has no readable header.
    """
    blocks = (block for path in sorted(folder.glob("*.safetensors")) for block in _sampled_blocks(path))
    return _hash(itertools.chain(_whole_files(folder, CONFIG_PATTERNS), blocks))


def tokenizer_fingerprint(folder: pathlib.Path) -> str:
    """Returns a hash of the tokenizer's files and the chat templates, all read whole."""
    return _hash(_whole_files(folder, TOKENIZER_PATTERNS))


def _hash(parts: Iterable[bytes]) -> str:
    """Returns the SHA-256 of some parts; their lengths count, so that no byte can move from one to the next."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _whole_files(folder: pathlib.Path, patterns: Iterable[str]) -> Iterator[bytes]:
    """Yields the name and the content of every file that matches any of the patterns, in the order of their names."""
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        yield str(path.relative_to(folder)).encode()
        yield path.read_bytes()


def _sampled_blocks(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the name and header of a safetensors file, then the first, middle and last block of every tensor.

    The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, a JSON header with the byte
    range of every tensor, the tensors.
    """
    yield path.name.encode()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise UserError(f"{path}: not a readable safetensors file (the header is longer than the file)")
        header = file.read(length)
        yield header
        for begin, end in _tensor_ranges(header, path):
            last = max(begin, end - BLOCK_BYTES)
            for start in sorted({begin, (begin + last) // 2, last}):
                file.seek(8 + length + start)
                yield file.read(min(BLOCK_BYTES, end - start))


def _tensor_ranges(header: bytes, path: pathlib.Path) -> list[tuple[int, int]]:
    """Returns where each tensor begins and ends, in bytes after the header, in the file's order."""
    try:
        fields = json.loads(header)
        return sorted(tuple(fields[name]["data_offsets"]) for name in fields.keys() - {"__metadata__"})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
