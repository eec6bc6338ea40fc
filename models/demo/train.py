"""Train the whole image demo: `python -m models.demo.train --seconds 6000 --out DIR`.

Runs the trainings one after another, each with its share of the time: text encoder, autoencoder,
then the transformer and, at the same time in a process of its own, the decoder's last polish; the
parts end as a checkpoint in DIR/sana-demo. Every training can also be run by itself. With
`--resume`, stages that are done are skipped and a broken one goes on from its last state.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

# Shares of the time; the two of the last stage run side by side.
TEXT_SHARE, AUTOENCODER_SHARE, TRANSFORMER_SHARE = 0.05, 0.5, 0.45


def _command(module: str, seconds: float, out: Path, seed: int, *extra: str | Path) -> list[str]:
    command = [sys.executable, "-m", f"models.demo.{module}", "--seconds", str(seconds)]
    command += ["--out", str(out), "--seed", str(seed), *map(str, extra)]
    return command


def _run(stage: str, out: Path, commands: list[list[str]], resume: bool) -> None:
    """Run the commands of one stage side by side; raises CalledProcessError if one fails."""
    marker = out / f"{stage}.done"
    if resume and marker.exists():
        return
    print(f"stage {stage}", flush=True)
    processes = [subprocess.Popen(command) for command in commands]
    for process, command in zip(processes, commands, strict=True):
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, command)
    marker.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export the image demo.")
    parser.add_argument("--seconds", type=float, required=True, help="for everything together")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    parser.add_argument("--out", type=Path, required=True, help="folder of states and checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from what is in --out")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    threads = ("--threads", str(arguments.threads))
    text, autoencoder = out / "text", out / "autoencoder"
    polished, transformer = out / "polished", out / "transformer"

    def command(module: str, share: float, folder: Path, *extra: str | Path) -> list[str]:
        again = ("--resume",) if arguments.resume and any(folder.glob("*.state")) else ()
        seconds = arguments.seconds * share
        return _command(module, seconds, folder, arguments.seed, *threads, *extra, *again)

    _run(
        "text_encoder",
        out,
        [command("train_text_encoder", TEXT_SHARE, text)],
        arguments.resume,
    )
    _run(
        "autoencoder",
        out,
        [command("train_autoencoder", AUTOENCODER_SHARE, autoencoder)],
        arguments.resume,
    )
    frozen = autoencoder / "autoencoder.state"
    parts = ("--autoencoder", frozen, "--text-encoder", text)
    _run(
        "transformer",
        out,
        [
            command("train_transformer", TRANSFORMER_SHARE, transformer, *parts),
            command("polish_decoder", TRANSFORMER_SHARE, polished, "--start", frozen),
        ],
        arguments.resume,
    )
    export = [sys.executable, "-m", "models.demo.export", "--out", str(out / "sana-demo")]
    export += ["--autoencoder", str(polished / "autoencoder.state"), "--text-encoder", str(text)]
    export += ["--transformer", str(transformer / "transformer.state")]
    subprocess.run(export, check=True)


if __name__ == "__main__":
    main()
