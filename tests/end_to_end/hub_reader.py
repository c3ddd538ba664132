"""What a host that runs inference does with huggingface_hub, again and again; runs in an environment of its own.

Prints one JSON object: how often each thing was done, and what was torn or mixed. Everything is checked against the
manifest that came with it, and that against the commit it claims.
"""

import json
import sys
import tempfile
import threading
from collections import Counter
from hashlib import sha256
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download

MODEL_ID = "foldin/merged"
WEIGHTS = "model.safetensors"

counts: Counter[str] = Counter()
faults: list[str] = []


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def check(what: str, folder: Path, commit: str) -> None:
    """Check a downloaded folder: the manifest is the commit's, and every file the manifest's."""
    manifest = (folder / "foldin.json").read_bytes()
    if digest(manifest)[:40] != commit:
        faults.append(f"{what}: the manifest of {commit} is another's")
    for name, file in json.loads(manifest)["files"].items():
        if digest((folder / name).read_bytes()) != file["sha256"]:
            faults.append(f"{what}: {name} of {commit} is another's")


def snapshot(revision: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        folder = Path(snapshot_download(MODEL_ID, revision=revision, cache_dir=cache))
        check(f"snapshot_download of {revision}", folder, folder.name)


def single_file(revision: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        weights = Path(hf_hub_download(MODEL_ID, WEIGHTS, revision=revision, cache_dir=cache))
        manifest = Path(hf_hub_download(MODEL_ID, "foldin.json", revision=weights.parent.name, cache_dir=cache))
        if digest(weights.read_bytes()) != json.loads(manifest.read_bytes())["files"][WEIGHTS]["sha256"]:
            faults.append(f"hf_hub_download of {revision}: not what {weights.parent.name} has")


def refs(_: str) -> None:
    found = HfApi().list_repo_refs(MODEL_ID)
    named = {ref.name: ref.target_commit for ref in found.tags}
    if next(ref.target_commit for ref in found.branches if ref.name == "main") not in named.values():
        faults.append("list_repo_refs: main is no version")


def file_system(revision: str) -> None:
    commit = HfApi().model_info(MODEL_ID, revision=revision).sha
    files = HfFileSystem(skip_instance_cache=True, use_listings_cache=False)
    manifest = json.loads(files.cat_file(f"{MODEL_ID}@{commit}/foldin.json"))
    with files.open(f"{MODEL_ID}@{commit}/{WEIGHTS}", block_size=4096) as opened:
        opened.seek(1000)
        tail = opened.read()
        opened.seek(0)
        content = opened.read(1000) + tail
    if digest(content) != manifest["files"][WEIGHTS]["sha256"]:
        faults.append(f"HfFileSystem: {WEIGHTS} of {commit} is another's")
    if {Path(path).name for path in files.ls(f"{MODEL_ID}@{commit}", detail=False)} < set(manifest["files"]):
        faults.append(f"HfFileSystem: files of {commit} are not listed")


def read(actions: list, until: Path, seed: int) -> None:
    turn = seed
    while not until.exists():
        action = actions[turn % len(actions)]
        revision = ("main", "latest", "stable", "v1")[turn // len(actions) % 4]
        turn += 1
        try:
            action(revision)
            counts[action.__name__] += 1
        except Exception as error:
            faults.append(f"{action.__name__} of {revision}: {type(error).__name__}: {error}")


def main() -> None:
    until, readers, only = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    actions = [action for action in (snapshot, single_file, refs, file_system) if not only or action.__name__ in only]
    threads = [threading.Thread(target=read, args=(actions, until, seed)) for seed in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"version": huggingface_hub.__version__, "counts": counts, "faults": faults}))


if __name__ == "__main__":
    main()
