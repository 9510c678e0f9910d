#!/usr/bin/env python3
"""Installs peers, each in an environment of its own, and makes their models of ours: what `curve.py` compares with.

    python benchmarks/prepare_peers.py sample:smollm2-135m --to peers
    python benchmarks/prepare_peers.py sample:smollm2-135m --to peers --only ort-genai
    python benchmarks/curve.py peers/peers.toml --ours points --text TEXT --out curve

Writes the model as a Hugging Face directory, hands it (llama.cpp: the sample's GGUF file) to the peer's own program,
and lists what measures each result in peers.toml. llama.cpp is compiled here; CMAKE_ARGS replaces its flags. On a
processor with AMX leave AMX out, with which it ended with an illegal instruction:

    CMAKE_ARGS='-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON' python benchmarks/prepare_peers.py …
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LLAMA_TYPES = {"Q4_0": 2, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}
REQUANTIZE = """
import sys, llama_cpp
wanted = llama_cpp.llama_model_quantize_default_params()
wanted.ftype, wanted.allow_requantize = int(sys.argv[3]), True
raise SystemExit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), wanted))
"""


@dataclass(frozen=True)
class Model:
    """A peer's model.

    Attributes:
        name: What it is called in tables.
        path: What the peer opens, below the folder of all peers.
        files: Those of graph and weights, below the folder of all peers: they are its size.
        make: Arguments of the peer's Python that make it; `{hf}` is the model's directory, `{gguf}` its GGUF file.
        kind: llama.cpp's number of its type; a file that has this type already is copied.
    """

    name: str
    path: str
    files: tuple[str, ...]
    make: tuple[str, ...]
    kind: int | None = None


@dataclass(frozen=True)
class Peer:
    """A peer: what pip installs, and the models that are made."""

    packages: tuple[str, ...]
    models: tuple[Model, ...]


def llama(name: str, kind: int) -> Model:
    path = f"llama.cpp-{name}.gguf"
    return Model(f"llama.cpp {name}", path, (path,), ("-c", REQUANTIZE, "{gguf}", path, str(kind)), kind)


def genai(name: str, path: str, *options: str) -> Model:
    make = ("-m", "onnxruntime_genai.models.builder", "-i", "{hf}", "-o", path, "-p", "int4", "-e", "cpu")
    files = (f"{path}/model.onnx", f"{path}/model.onnx.data")
    return Model(name, path, files, (*make, "-c", "cache", "--extra_options", "accuracy_level=4", *options))


MIXED = ("algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8")
EXPORT = ("-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", "{hf}", "--task")
INT4 = ("text-generation-with-past", "--weight-format", "int4", "--group-size", "32", "--ratio", "1.0", "--sym")
PEERS = {
    "llama.cpp": Peer(("llama-cpp-python==0.3.36", "numpy"), tuple(llama(*each) for each in LLAMA_TYPES.items())),
    "ort-genai": Peer(
        ("onnxruntime-genai==0.18.*", "torch", "transformers", "onnx-ir"),
        (genai("ORT GenAI int4", "ort-int4"), genai("ORT GenAI int4 k_quant + int8", "ort-k-quant", *MIXED)),
    ),
    "openvino": Peer(
        ("openvino-genai==2026.4.*", "optimum-intel", "nncf", "torch"),
        (
            Model(
                "OpenVINO int4",
                "openvino-int4",
                ("openvino-int4/openvino_model.xml", "openvino-int4/openvino_model.bin"),
                (*EXPORT, *INT4, "openvino-int4"),
            ),
        ),
    ),
}


def run(command: list[str], folder: Path, **environment: str) -> None:
    """Runs a command in a folder, and shows it.

    Raises:
        SystemExit: It failed.
    """
    print("+", shlex.join(command), flush=True)
    code = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=False).returncode
    if code:
        raise SystemExit(f"{shlex.join(command)} failed with exit code {code}")


def originals(source: str, folder: Path) -> dict[str, str]:
    """Writes a sample model as a Hugging Face directory and as its GGUF file; returns both paths."""
    sys.path.insert(0, str(ROOT.parent))
    from leptonc.sources import open_source
    from sample_models import packaged_model
    from sample_models.export import write_directory

    write_directory(open_source(source), folder / "hf")
    whole = folder / "model.gguf"
    with whole.open("wb") as file:  # packages may carry it in parts
        for part in packaged_model(source.partition(":")[2]).files:
            package, _, rest = part.partition("/")
            spec = importlib.util.find_spec(package)
            assert spec is not None
            assert spec.submodule_search_locations is not None
            file.write((Path(spec.submodule_search_locations[0]) / rest).read_bytes())
    return {"hf": str(folder / "hf"), "gguf": str(whole)}


def kind_of(path: str) -> int:
    """Returns llama.cpp's number of a GGUF file's type."""
    from gguf import GGUFReader

    return int(GGUFReader(path).fields["general.file_type"].contents())


def prepare(name: str, peer: Peer, folder: Path, model_files: dict[str, str]) -> list[str]:
    """Installs a peer and makes its models; returns the tables of peers.toml."""
    home = folder / f"env-{name}"
    python = str(home / "bin" / "python")
    if not home.exists():
        venv.create(home, with_pip=True)
        flags = os.environ.get("CMAKE_ARGS", "-DGGML_NATIVE=ON")
        run([python, "-m", "pip", "install", "--quiet", *peer.packages], folder, CMAKE_ARGS=flags)
    tables = []
    for model in peer.models:
        if model.kind == kind_of(model_files["gguf"]):
            shutil.copyfile(model_files["gguf"], folder / model.path)
        if not (folder / model.path).exists():
            run([python, *(part.format(**model_files) if "{" in part else part for part in model.make)], folder)
        measured = f"{shlex.quote(python)} {shlex.quote(str(ROOT))}"
        table = {
            "name": model.name,
            "files": list(model.files),
            "quality": f"{measured}/peer_quality.py {name} {model.path} --windows {{windows}}",
            "speed": f"{measured}/peer_speed.py {name} {model.path}",
        }
        tables.append("[[peer]]\n" + "".join(f"{key} = {quoted(value)}\n" for key, value in table.items()))
    return tables


def quoted(value: str | list[str]) -> str:
    """Returns TOML's text of a string or a list of strings."""
    if isinstance(value, list):
        return f"[{', '.join(quoted(part) for part in value)}]"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="sample model, sample:NAME")
    parser.add_argument("--to", type=Path, default=Path("peers"), help="folder for all of it")
    parser.add_argument("--only", action="append", choices=PEERS, help="a peer; several times")
    args = parser.parse_args()
    folder = args.to.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model_files = originals(args.source, folder)
    tables = [part for name in args.only or PEERS for part in prepare(name, PEERS[name], folder, model_files)]
    (folder / "peers.toml").write_text("\n".join(tables), encoding="utf-8")
    print(f"python benchmarks/curve.py {args.to}/peers.toml --ours points --text TEXT --out curve")


if __name__ == "__main__":
    main()
