#!/usr/bin/env python3
"""Makes a container image of one program, without a daemon and without a base image.

The root file system is the program, the shared objects that it is linked to (taken from this machine), the CA
certificates of this machine, and a user without rights. The result is one tar file that is an OCI layout and also what
`docker load` reads:

    docker load -i FILE        podman load -i FILE        ctr images import FILE        skopeo copy oci-archive:FILE ...

The same program and the same SOURCE_DATE_EPOCH give the same bytes.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time

USER = 65532
CERTIFICATES = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"]
# The licenses of the program and of the crates that it is made of.
NOTICES = ["LICENSE", "THIRD_PARTY_NOTICES.txt"]
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
# The Debian packages that files are copied from. Their licenses are copied as well.
PACKAGES = ["libc6", "libgcc-s1", "ca-certificates"]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def main():
    args = arguments()
    # What changes seldom is a layer of its own.
    layers = [program_files(args)] if args.static else [base_files(args), program_files(args)]
    tars = [tar_of(files, args.epoch) for files in layers]
    blobs = {}
    manifest = image(args, tars, blobs)
    write_archive(args, manifest, blobs)
    compressed, unpacked = os.path.getsize(args.output), sum(len(tar) for tar in tars)
    print(f"{args.name} in {args.output}")
    print(f"{compressed / 1e6:.1f} MB compressed, {unpacked / 1e6:.1f} MB unpacked, {manifest['digest']}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the program that the image runs")
    parser.add_argument("--name", required=True, help="the image's name, e.g. ecr-credential-operator:0.1.0")
    parser.add_argument("--output", required=True, help="the tar file to write")
    parser.add_argument("--static", action="store_true", help="the program needs no shared objects and no certificates")
    parser.add_argument("--argument", action="append", default=[], help="a default argument of the program; repeatable")
    parser.add_argument("--link", action="append", default=[], help="a further name of the program; repeatable")
    parser.add_argument("--port", action="append", default=[], help="a TCP port that the program serves; repeatable")
    parser.add_argument("--label", action="append", default=[], help="a label as KEY=VALUE; repeatable")
    args = parser.parse_args()
    if ":" not in args.name.rsplit("/", 1)[-1]:
        parser.error(f"--name {args.name} has no tag")
    args.labels = dict(label.split("=", 1) for label in args.label)
    args.epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    args.path = "/usr/local/bin/" + os.path.basename(args.program)
    machine = platform.machine()
    args.architecture = ARCHITECTURES.get(machine, machine)
    return args


def base_files(args):
    """Everything but the program."""
    files = {path: (os.path.realpath(path), 0o755) for path in shared_objects(args.program)}
    certificates = next((path for path in CERTIFICATES if os.path.exists(path)), None)
    if certificates is None:
        sys.exit("no CA certificates on this machine: install the package ca-certificates")
    files["/etc/ssl/certs/ca-certificates.crt"] = (certificates, 0o644)
    for package in PACKAGES:
        path = f"/usr/share/doc/{package}/copyright"
        if os.path.exists(path):
            files[path] = (path, 0o644)
    users = f"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/:/sbin/nologin\n"
    files["/etc/passwd"] = (users.encode(), 0o644)
    files["/etc/group"] = (f"root:x:0:\nnonroot:x:{USER}:\n".encode(), 0o644)
    files["/etc/nsswitch.conf"] = (b"hosts: files dns\n", 0o644)
    files["/tmp/"] = (None, 0o1777)
    return files


class Link(str):
    """The path that a symbolic link leads to."""


def program_files(args):
    files = {args.path: (args.program, 0o755)}
    for name in args.link:
        files["/usr/local/bin/" + name] = (Link(args.path), 0o777)
    if not args.static:
        for name in NOTICES:
            files["/" + name] = (os.path.join(ROOT, name), 0o644)
    return files


def shared_objects(program):
    """The paths of the loader and of the shared objects, as the loader itself resolves them."""
    answer = subprocess.run(["ldd", program], capture_output=True, text=True)
    if answer.returncode != 0:
        sys.exit(f"ldd {program}: {(answer.stderr or answer.stdout).strip()}")
    missing = re.findall(r"(\S+) => not found", answer.stdout)
    if missing:
        sys.exit(f"{program} needs {', '.join(missing)}, which this machine lacks")
    found = re.findall(r"(?:=>\s*)?(/\S+) \(0x", answer.stdout)
    libc = next((path for path in found if os.path.basename(path) == "libc.so.6"), None)
    # Up to 2.33 glibc loads these by name when it first resolves a host; later they are part of it.
    names = ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"] if libc and glibc() < (2, 34) else []
    return found + [os.path.join(os.path.dirname(libc), name) for name in names]


def glibc():
    return tuple(int(part) for part in os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")[:2])


def tar_of(files, epoch):
    """A tar of sorted entries without owners or times of their own."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, (source, mode) in sorted(with_directories(files).items()):
            entry = tarfile.TarInfo(path.strip("/"))
            entry.mtime, entry.mode = epoch, mode
            if source is None:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
                continue
            if isinstance(source, Link):
                entry.type, entry.linkname = tarfile.SYMTYPE, source
                tar.addfile(entry)
                continue
            if not isinstance(source, bytes):
                with open(source, "rb") as file:
                    source = file.read()
            entry.size = len(source)
            tar.addfile(entry, io.BytesIO(source))
    return plain.getvalue()


def compress(data):
    compressed = io.BytesIO()
    with gzip.GzipFile(fileobj=compressed, mode="wb", compresslevel=9, mtime=0) as stream:
        stream.write(data)
    return compressed.getvalue()


def with_directories(files):
    entries = dict(files)
    for path in files:
        parent = os.path.dirname(path.rstrip("/"))
        while parent != "/":
            entries.setdefault(parent + "/", (None, 0o755))
            parent = os.path.dirname(parent)
    return entries


def image(args, tars, blobs):
    """Puts the parts of the image into `blobs`, by digest, and returns the descriptor of its manifest."""

    def keep(media_type, data):
        digest = digest_of(data)
        blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(args.epoch))
    config = {
        "architecture": args.architecture,
        "os": "linux",
        "created": created,
        "config": {
            "User": f"{USER}:{USER}",
            "Entrypoint": [args.path],
            "Cmd": args.argument,
            "ExposedPorts": {f"{port}/tcp": {} for port in args.port},
            "Env": ["PATH=/usr/local/bin"],
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.created": created, **args.labels},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
        "history": [{"created": created, "created_by": "hack/image.py"} for _ in tars],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": keep("application/vnd.oci.image.config.v1+json", compact(config)),
        "layers": [keep("application/vnd.oci.image.layer.v1.tar+gzip", compress(tar)) for tar in tars],
        "annotations": args.labels,
    }
    return keep(manifest["mediaType"], compact(manifest))


def write_archive(args, manifest, blobs):
    parts = json.loads(blobs[manifest["digest"]])
    described = {
        **manifest,
        "platform": {"architecture": args.architecture, "os": "linux"},
        "annotations": {
            "io.containerd.image.name": full_name(args.name),
            "org.opencontainers.image.ref.name": args.name.rsplit(":", 1)[1],
        },
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [described]}
    path = lambda digest: "blobs/" + digest.replace(":", "/")
    docker = {
        "Config": path(parts["config"]["digest"]),
        "RepoTags": [args.name],
        "Layers": [path(part["digest"]) for part in parts["layers"]],
    }
    files = {"/" + path(digest): (data, 0o644) for digest, data in blobs.items()}
    files["/oci-layout"] = (compact({"imageLayoutVersion": "1.0.0"}), 0o644)
    files["/index.json"] = (compact(index), 0o644)
    files["/manifest.json"] = (compact([docker]), 0o644)
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    # Written under another name, so that an interrupted run leaves nothing that looks finished.
    with open(args.output + ".partial", "wb") as file:
        file.write(tar_of(files, args.epoch))
    os.replace(args.output + ".partial", args.output)


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def full_name(name):
    """The name as container runtimes write it: one without a host is Docker Hub's."""
    first, _, rest = name.partition("/")
    if rest and ("." in first or ":" in first or first == "localhost"):
        return name
    return "docker.io/" + (name if rest else "library/" + name)


def compact(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


if __name__ == "__main__":
    main()
