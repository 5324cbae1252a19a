"""Small archives in the layouts of the real ones, a server for them, and children that can be limited or killed."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import binary_erosion
from scipy.sparse import csc_matrix

from gbseg.palettes import VOC_PALETTE

VOC_NAME, SBD_NAME = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"


def sbd_struct(mask: np.ndarray) -> dict:
    """What the files of SBD's ``cls`` folder hold, as its README describes it."""
    boundaries = np.empty((20, 1), object)
    for k in range(20):
        area = mask == k + 1
        boundaries[k, 0] = csc_matrix(area & ~binary_erosion(area))
    present = np.array([[k] for k in np.unique(mask) if k], np.float64)
    return {"GTcls": {"Segmentation": mask, "Boundaries": boundaries, "CategoriesPresent": present}}


def voc_png(mask: np.ndarray) -> bytes:
    """An indexed PNG as VOC's authors write it."""
    image, buffer = Image.fromarray(mask), io.BytesIO()
    image.putpalette([value for colour in VOC_PALETTE for value in colour])
    image.save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


@dataclass
class Layouts:
    """Archives, and what is in them."""

    voc_tar: Path
    sbd_tar: Path
    noval: Path
    train: set[str]
    val: set[str]
    sbd_train: set[str]
    sbd_val: set[str]
    voc_masks: dict[str, np.ndarray]
    sbd_masks: dict[str, np.ndarray]
    images: dict[str, bytes]


def _ids(numbers: range) -> set[str]:
    return {f"20{7 + n % 5:02d}_{n:06d}" for n in numbers}


def build(folder: Path, sbd_only: int = 40, no_image: str | None = None) -> Layouts:
    """Archives of VOC (8 train, 7 val) and SBD, which share images; some of VOC's images are only in SBD's ``img``."""
    rng = np.random.default_rng(0)
    train, val = _ids(range(8)), _ids(range(8, 15))
    only = sorted(_ids(range(100, 100 + sbd_only)))
    sbd_train = {*only[: sbd_only * 3 // 4], *sorted(train)[:4], *sorted(val)[:3]}
    sbd_val = {*only[sbd_only * 3 // 4 :], *sorted(train)[4:6], *sorted(val)[3:5]}
    tree: dict[str, bytes] = {}
    voc, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    images, voc_masks, sbd_masks = {}, {}, {}
    for number, name in enumerate(sorted(train | val | sbd_train | sbd_val)):
        shape = (20 + number % 5, 31)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*shape, 3), np.uint8)).save(buffer, format="JPEG")
        images[name] = buffer.getvalue()
        labels = np.kron(rng.integers(0, 21, (6, 8)), np.ones((4, 4)))[: shape[0], : shape[1]].astype(np.uint8)
        if name in sbd_train | sbd_val:
            sbd_masks[name] = labels
            buffer = io.BytesIO()
            savemat(buffer, sbd_struct(labels), do_compression=True)
            tree[f"{sbd}/cls/{name}.mat"] = buffer.getvalue()
            tree[f"{sbd}/inst/{name}.mat"] = b"not read"
            if name != no_image:
                tree[f"{sbd}/img/{name}.jpg"] = images[name]
        if name in train | val:
            # another labelling than SBD's, with borders
            voc_masks[name] = np.where(rng.random(shape) < 0.2, 255, labels[::-1]).astype(np.uint8)
            tree[f"{voc}/SegmentationClass/{name}.png"] = voc_png(voc_masks[name])
        if name not in {no_image, only[0]}:
            tree[f"{voc}/JPEGImages/{name}.jpg"] = images[name]
    for where, name, ids in (
        (f"{voc}/ImageSets/Segmentation", "train", train),
        (f"{voc}/ImageSets/Segmentation", "val", val),
        (f"{voc}/ImageSets/Segmentation", "trainval", train | val),
        (sbd, "train", sbd_train),
        (sbd, "val", sbd_val),
    ):
        tree[f"{where}/{name}.txt"] = "".join(f"{image_id}\n" for image_id in sorted(ids)).encode()
    folder.mkdir(parents=True, exist_ok=True)
    write_tar(folder / VOC_NAME, {k: v for k, v in tree.items() if k.startswith(voc)})
    write_tar(folder / SBD_NAME, {k: v for k, v in tree.items() if k.startswith(sbd)})
    noval = folder / "train_noval.txt"
    noval.write_text("".join(f"{name}\n" for name in sorted(sbd_train - val)))
    return Layouts(folder / VOC_NAME, folder / SBD_NAME, noval, train, val, sbd_train, sbd_val, voc_masks, sbd_masks, images)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """An archive with its folders as members, as tar writes it."""
    folders: set[str] = set()
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, data in files.items():
            for parent in reversed(Path(name).parents[:-1]):
                if str(parent) not in folders:
                    folders.add(str(parent))
                    member = tarfile.TarInfo(str(parent))
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(member)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def md5_of(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.md5(data).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files``; keeps the asked ranges in ``asked``; what it does wrong is set by the attributes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str | None] = []
        self.ranges = True  # whether it knows them
        self.drop_after: int | None = None  # bytes of each answer before the connection is closed
        self.statuses: list[int] = []  # answers in place of the next ones
        self.shift = 0  # ranges begin that much later than asked for
        self.announce = True  # Content-Length
        self.pause = 0.0  # seconds a kilobyte
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: object, address: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        byte_range = self.headers.get("Range")
        server.asked.append(byte_range)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        data = server.files.get(self.path.lstrip("/"))
        # whoever never gives up shall fail and not hang
        if data is None or len(server.asked) > 200:
            self.send_error(404)
            return
        start = 0
        if byte_range and server.ranges:
            start = int(byte_range.removeprefix("bytes=").removesuffix("-")) + server.shift
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if server.announce:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        rest = data[start:][: server.drop_after]
        for begin in range(0, len(rest), 1024):
            self.wfile.write(rest[begin : begin + 1024])
            if server.pause:
                threading.Event().wait(server.pause)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A running server."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _child(call: Callable[[], object], limit: int | None, pipe: Connection) -> None:
    # what is printed goes to a file under pytest, which the limit would cut as well
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead of killing the process
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        call()
        pipe.send("")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def start_child(call: Callable[[], object], limit: int | None = None) -> tuple[multiprocessing.Process, Connection]:
    """Run a function in a forked process, which may write files of at most ``limit`` bytes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(call, limit, sender))
    process.start()
    sender.close()
    return process, receiver  # type: ignore[return-value]


def in_child(call: Callable[[], object], limit: int | None = None) -> str | None:
    """The error of a function in a forked process, '' without one, None if the process was killed."""
    process, pipe = start_child(call, limit)
    try:
        return pipe.recv()
    except EOFError:
        return None
    finally:
        process.join(60)
