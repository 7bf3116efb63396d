"""The contents of an image, as JSON: `fingerprint.py` lists every file and package, `fingerprint.py --digest` digests them.

Runs as root in the image's last build step, and in containers of two images that `./invoke image --verify` compares. Plain
standard library: it says the same wherever it runs.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys
from importlib import metadata

# What the engine puts into a container, the builder's mounts, and where the digest itself is written.
SKIPPED = {"/proc", "/sys", "/dev", "/srv", "/run", "/.dockerenv", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
SKIPPED |= {"/etc/mtab", "/opt/mapanything/image.json"}


def walk(folder: str, files: dict[str, str]) -> dict[str, str]:
    for entry in os.scandir(folder):
        if entry.path in SKIPPED:
            continue
        info = entry.stat(follow_symlinks=False)
        content = ""
        if entry.is_symlink():
            content = os.readlink(entry.path)
        elif stat.S_ISREG(info.st_mode):
            with open(entry.path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        files[entry.path] = f"{info.st_mode:o} {info.st_uid}:{info.st_gid} {content}"
        if entry.is_dir(follow_symlinks=False):
            walk(entry.path, files)
    return files


def main() -> None:
    files = walk("/", {})
    if "--digest" in sys.argv:
        listed = "".join(f"{path} {files[path]}\n" for path in sorted(files))
        print("sha256:" + hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest())
        return
    packages = subprocess.run(["dpkg-query", "-W"], capture_output=True, text=True, check=True).stdout.splitlines()
    packages += [f"{found.metadata['Name']}=={found.version}" for found in metadata.distributions()]
    print(json.dumps({"packages": sorted(packages), "files": files}))


if __name__ == "__main__":
    main()
