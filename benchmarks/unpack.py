"""Unpacks what `benchmarks.pack` made, on a machine with no more than Python.

    python3 unpack.py TARGET [FOLDER]

FOLDER (where this file lies, by default) holds the manifest and some of the parts. Each is
verified and kept in TARGET; an archive is unpacked once all of its parts are there, so that
parts may come one after another. `. TARGET/environment.sh` then sets the paths.
"""

import hashlib
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile

MANIFEST = "manifest.json"
CODE, WHEELS, SITE, DATA, CACHE = "code", "wheels", "site", "data", "cache"


def receive(
    folder: pathlib.Path, target: pathlib.Path
) -> tuple[list[str], dict[str, list[str]]]:
    """Takes what parts there are, and unpacks what is complete.

    Args:
      folder: of manifest and parts.
      target: where everything goes; is made.

    Returns:
      The names of the archives that are unpacked, and the parts that others wait for.

    Raises:
      ValueError: a part is damaged.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    kept = target / "parts"
    kept.mkdir(parents=True, exist_ok=True)
    complete, missing = [], {}
    for name, sums in manifest.items():
        done = target / f"{name}.done"
        mark = json.dumps(sums)
        if done.is_file() and done.read_text() == mark:
            complete.append(name)
            continue
        for part, right in sums.items():
            if (folder / part).is_file():
                found = hashlib.sha256((folder / part).read_bytes()).hexdigest()
                if found != right:
                    raise ValueError(f"{folder / part} is damaged; carry it again")
                shutil.copy(folder / part, kept / part)
        absent = [part for part in sums if not (kept / part).is_file()]
        if absent:
            missing[name] = absent
            continue
        with tempfile.TemporaryFile() as whole:
            for part in sums:
                whole.write((kept / part).read_bytes())
            whole.seek(0)
            with tarfile.open(fileobj=whole, mode="r:gz") as archive:
                archive.extractall(target, filter="data")
        for part in sums:
            (kept / part).unlink()
        install(target)
        done.write_text(mark)
        complete.append(name)
    environment(target)
    return complete, missing


def install(target: pathlib.Path) -> None:
    """Installs the wheels, into a folder of their own and without a network."""
    found = sorted(map(str, (target / WHEELS).glob("*.whl")))
    if found:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
        command += ["--no-deps", "--no-compile", "--upgrade"]
        subprocess.run([*command, "--target", target / SITE, *found], check=True)


def environment(target: pathlib.Path) -> None:
    """Writes the script that sets the paths."""
    paths = ":".join(str((target / name).resolve()) for name in (CODE, SITE))
    lines = [f"export PYTHONPATH={shlex.quote(paths)}${{PYTHONPATH:+:$PYTHONPATH}}"]
    for name, folder in (("TFDS_DATA_DIR", DATA), ("LOTTERY_JAX_CACHE", CACHE)):
        if (target / folder).is_dir():
            lines.append(
                f"export {name}={shlex.quote(str((target / folder).resolve()))}"
            )
    (target / "environment.sh").write_text("\n".join(lines) + "\n")


def main(arguments: list[str]) -> None:
    """Unpacks from this file's folder, or from the one that is given."""
    own = arguments[1] if len(arguments) > 1 else pathlib.Path(__file__).parent
    complete, missing = receive(pathlib.Path(own), pathlib.Path(arguments[0]))
    print("unpacked:", ", ".join(complete) or "nothing")
    for name, parts in missing.items():
        print(f"{name} waits for {', '.join(parts)}")
    print(f". {pathlib.Path(arguments[0]) / 'environment.sh'}")


if __name__ == "__main__":
    main(sys.argv[1:])
