"""Archives and annotations that are broken or hostile: one clear error each, and no output."""

import gzip
import io
import random
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import convert
from pipeline.base.files import BadInputError, whole
from pipeline.data import archives
from pipeline.data.packed import pack
from pipeline.datasets import cars, cub, inshop, sop
from tests import lookalikes, swap
from tests.lookalikes import cub_files, member, sop_files, tgz, zipped

TGZ = "CUB_200_2011.tgz"
ALBATROSS = "CUB_200_2011/images/001.Black_footed_Albatross/Black_footed_Albatross_0046_53.jpg"


def refused(dataset, raw: Path) -> str:
    """Pack what `raw` holds as the convert stage does; return its refusal, which leaves nothing behind."""
    with pytest.raises(BadInputError) as error, whole(raw.parent / "packed" / "it") as folder:
        pack(dataset.images(raw), folder)
    assert not list((raw.parent / "packed").iterdir())
    return str(error.value)


@pytest.mark.parametrize("build", [lookalikes.cub, lookalikes.sop], ids=["tgz", "zip"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive(tmp_path, build, keep):
    build(tmp_path / "raw")
    (path,) = (tmp_path / "raw").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert f"{path} is damaged or cut short" in refused(cub if build is lookalikes.cub else sop, tmp_path / "raw")


@pytest.mark.parametrize("build", [lookalikes.cub, lookalikes.sop], ids=["tgz", "zip"])
def test_a_flipped_bit_never_passes_unseen(tmp_path, build):
    """At thirty places: an error, or (in a part that nobody reads, such as a date) the very same bytes."""
    dataset = cub if build is lookalikes.cub else sop
    build(tmp_path / "raw")
    (path,) = (tmp_path / "raw").iterdir()
    content = path.read_bytes()
    pack(dataset.images(tmp_path / "raw"), tmp_path / "good")
    generator, refusals = random.Random(3), 0
    for attempt in range(30):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            pack(dataset.images(tmp_path / "raw"), tmp_path / str(attempt))
        except BadInputError:
            refusals += 1
        else:
            for file in ("images.bin", "index.csv"):
                assert (tmp_path / str(attempt) / file).read_bytes() == (tmp_path / "good" / file).read_bytes()
    assert refusals > 20


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (member("CUB_200_2011/../../etc/passwd", b"x"), "leads out of the archive"),
        (member("/etc/passwd", b"x"), "leads out of the archive"),
        (member("CUB_200_2011/link", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is a link, not a file"),
        (member("CUB_200_2011/link", kind=tarfile.LNKTYPE, link="CUB_200_2011/images.txt"), "is a link, not a file"),
        (member("CUB_200_2011/null", kind=tarfile.CHRTYPE), "is a device, not a file"),
        (member("CUB_200_2011/pipe", kind=tarfile.FIFOTYPE), "is a device, not a file"),
    ],
    ids=["up", "absolute", "symlink", "hard link", "device", "pipe"],
)
def test_hostile_members_of_a_tar(tmp_path, info, reason):
    tgz(tmp_path / "raw" / TGZ, cub_files(), [(info, b"x" * info.size)])
    message = refused(cub, tmp_path / "raw")
    assert message.startswith(f"{tmp_path}/raw/{TGZ}: the member {info.name!r} {reason}: remove it")


def test_hostile_members_of_a_zip(tmp_path):
    zipped(tmp_path / "raw/Stanford_Online_Products.zip", {"../up.txt": b"x"} | sop_files())
    assert "the member '../up.txt' leads out of the archive" in refused(sop, tmp_path / "raw")
    link = zipfile.ZipInfo("Stanford_Online_Products/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(zipped(tmp_path / "raw/Stanford_Online_Products.zip", sop_files()), "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "the member 'Stanford_Online_Products/link' is a link, not a file" in refused(sop, tmp_path / "raw")


def test_bombs(tmp_path):
    """A member of 100 MB that is read, and one of 2 GB that is not, each of zeros; neither is unpacked."""
    zeros = bytes(100 << 20)
    files = sop_files() | {"Stanford_Online_Products/Ebay_train.txt": zeros}
    zipped(tmp_path / "raw/Stanford_Online_Products.zip", files)
    message = refused(sop, tmp_path / "raw")
    assert "'Stanford_Online_Products/Ebay_train.txt' takes 104,857,600 bytes unpacked, which is too much" in message
    tgz(tmp_path / "raw" / TGZ, cub_files() | {ALBATROSS: zeros})
    assert f"{ALBATROSS!r} takes 104,857,600 bytes unpacked, which is too much" in refused(cub, tmp_path / "raw")
    huge = member("CUB_200_2011/huge")
    huge.size = 2 << 30
    with gzip.open(tmp_path / "raw" / TGZ, "wb") as file:
        file.write(huge.tobuf())
    assert "'CUB_200_2011/huge' takes 2,147,483,648 bytes" in refused(cub, tmp_path / "raw")


def test_a_bomb_of_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 1 << 20)
    many = {f"CUB_200_2011/zeros{number}": bytes(1 << 19) for number in range(60)}
    tgz(tmp_path / "raw" / TGZ, many | cub_files())
    assert "takes 524,288 bytes unpacked, which is too much" in refused(cub, tmp_path / "raw")


def header(name: str, size: int, kind: bytes) -> bytes:
    """A tar header of one block."""
    info = member(name, kind=kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            archive.addfile(member(name, content), io.BytesIO(content))
    return buffer.getvalue()


def checked(block: bytearray) -> bytes:
    """A tar header with the right checksum."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse_header() -> bytes:
    """A header of a sparse file that says that more of its map follows."""
    block = bytearray(header("s", 512, tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    return checked(block)


def negative_header() -> bytes:
    block = bytearray(header("n", 0, tarfile.REGTYPE))
    block[124:136] = b"\xff" * 12
    return checked(block)


MEGABYTE = 1 << 20
PAX = header("p", 20, tarfile.XHDTYPE) + b"20 comment=xxxxxxxx\n".ljust(512, b"\0")
GLOBAL = header("p", 20, tarfile.XGLTYPE) + b"20 comment=xxxxxxxx\n".ljust(512, b"\0")
IN_A_ROW = "more than 1,048,576 bytes in a row belong to no member, which is too much"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ([PAX] * 3000, [], "is damaged or cut short|in a row"),
        ([GLOBAL] * 3000, [], "is damaged or cut short|in a row"),
        ([header("p", 1 << 32, tarfile.XHDTYPE), *[bytes(MEGABYTE)] * 3], [], IN_A_ROW),
        ([header("p", 100 << 20, tarfile.XGLTYPE), *[bytes(MEGABYTE)] * 3], [], IN_A_ROW),
        ([header("n", 1 << 32, tarfile.GNUTYPE_LONGNAME), *[b"a" * MEGABYTE] * 3], [], IN_A_ROW),
        ([header("n", 1 << 32, tarfile.GNUTYPE_LONGLINK), *[b"a" * MEGABYTE] * 3], [], IN_A_ROW),
        ([sparse_header(), *[(bytes(504) + b"\1" + bytes(7)) * 2048] * 3], [], IN_A_ROW),
        ([], [bytes(MEGABYTE)] * 3, IN_A_ROW),
        ([], [b"\1" * MEGABYTE] * 3, IN_A_ROW),
        ([negative_header()], [], "is damaged|has no name or the impossible size -1|holds no CUB"),
    ],
    ids=[
        "PAX headers in a row",
        "global headers in a row",
        "a large PAX header",
        "a large global header",
        "a long name",
        "a long link",
        "a sparse file's map",
        "zeros after the end",
        "more after the end",
        "a negative size",
    ],
)
def test_headers_and_tails_without_an_end(tmp_path, before, after, reason):
    """All that comes is little of what is announced, so that a test that waits for all of it fails soon."""
    (tmp_path / "raw").mkdir()
    with gzip.open(tmp_path / "raw" / TGZ, "wb", compresslevel=1) as file:
        for part in (*before, tar_of(cub_files()), *after):
            file.write(part)
    message = refused(cub, tmp_path / "raw")
    assert message.startswith(f"{tmp_path}/raw/{TGZ}") and re.search(reason, message)


@pytest.mark.parametrize("name", ["", ".", "./", "./."])
def test_a_file_without_a_name(tmp_path, name):
    tgz(tmp_path / "raw" / TGZ, cub_files(), [(member(name, b"x"), b"x")])
    assert f"{TGZ}: the member {name.removeprefix('./')!r} has no name" in refused(cub, tmp_path / "raw")
    zipped(tmp_path / "raw" / ZIP, {"qqqq" + name[1:]: b"x"} | sop_files())
    content = (tmp_path / "raw" / ZIP).read_bytes()
    (tmp_path / "raw" / ZIP).write_bytes(content.replace(b"qqqq", b"\0qqq"))
    assert f"{ZIP}: the member '' has no name" in refused(sop, tmp_path / "raw")


def test_a_folder_named_by_a_dot_is_nothing_odd(tmp_path):
    """`tar -C folder -c .` begins with it."""
    tgz(tmp_path / "raw" / TGZ, {}, [(member(".", kind=tarfile.DIRTYPE), b"")])
    files = cub_files()
    with gzip.open(tmp_path / "raw" / TGZ, "wb") as file:
        file.write(header("./", 0, tarfile.DIRTYPE) + tar_of({f"./{name}": files[name] for name in files}))
    assert pack(cub.images(tmp_path / "raw"), tmp_path / "packed").images == 12


ZIP = "Stanford_Online_Products.zip"


def first_content(content: bytearray) -> int:
    """The place of the first member's bytes."""
    return 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")


def in_directory(place: int, value: int):
    """What sets one byte of every entry of the central directory."""

    def spoil(content: bytearray) -> None:
        for match in re.finditer(b"PK\x01\x02", bytes(content)):
            content[match.start() + place] = value

    return spoil


def flip_content(content: bytearray) -> None:
    content[first_content(content) + 14] ^= 255


def not_utf8(content: bytearray) -> None:
    for place, value in ((9, 8), (46, 255)):
        in_directory(place, value)(content)


@pytest.mark.parametrize(
    ("method", "spoil", "reason"),
    [
        (zipfile.ZIP_DEFLATED, flip_content, "is damaged or cut short"),
        (zipfile.ZIP_BZIP2, flip_content, "is damaged or cut short"),
        (zipfile.ZIP_LZMA, flip_content, "is damaged or cut short"),
        (zipfile.ZIP_STORED, flip_content, "is damaged or cut short"),
        (zipfile.ZIP_DEFLATED, not_utf8, "is damaged or cut short"),
        (zipfile.ZIP_DEFLATED, in_directory(10, 99), "cannot be read .*not supported"),
        (zipfile.ZIP_DEFLATED, in_directory(45, 127), "is damaged or cut short"),
    ],
    ids=["deflate", "bz2", "lzma", "stored", "names not UTF-8", "unknown method", "offsets"],
)
def test_a_damaged_zip(tmp_path, method, spoil, reason):
    (tmp_path / "raw").mkdir()
    with zipfile.ZipFile(tmp_path / "raw" / ZIP, "w", method) as archive:
        for name, content in sop_files().items():
            archive.writestr(name, content)
    content = bytearray((tmp_path / "raw" / ZIP).read_bytes())
    spoil(content)
    (tmp_path / "raw" / ZIP).write_bytes(content)
    assert re.search(f"{ZIP} {reason}", refused(sop, tmp_path / "raw"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_flipped_bits_is_refused_in_one_line_or_the_same(tmp_path, method, seed):
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / ZIP
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in sop_files().items():
            archive.writestr(name, content)
    content = path.read_bytes()
    pack(sop.images(tmp_path / "raw"), tmp_path / "good")
    generator = random.Random(seed)
    for attempt in range(12):
        spoilt = bytearray(content)
        for _ in range(1 + attempt % 4):
            spoilt[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(spoilt)
        try:
            pack(sop.images(tmp_path / "raw"), tmp_path / str(attempt))
        except BadInputError as error:
            assert str(path) in str(error)
        else:
            assert (tmp_path / str(attempt) / "index.csv").read_bytes() == (tmp_path / "good/index.csv").read_bytes()


def twice(text: bytes) -> bytes:
    """The lines of a list of ids and classes, and each again with another class."""
    lines = [line.split() for line in text.decode().splitlines()]
    return text + "".join(f"{key} {5 - int(label)}\n" for key, label in lines).encode()


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt"])
def test_a_list_that_is_there_twice(tmp_path, name):
    path, files = f"CUB_200_2011/{name}", cub_files()
    other = files[path].splitlines(keepends=True)[0]
    tgz(tmp_path / "raw" / TGZ, files, [(member(path, other), other)])
    assert f"{TGZ} holds {path} twice: this is another archive" in refused(cub, tmp_path / "raw")
    if name == "image_class_labels.txt":
        tgz(tmp_path / "raw" / TGZ, files | {path: twice(files[path])})
        assert f"{TGZ}: {name} has the id 1 twice" in refused(cub, tmp_path / "raw")


def test_an_id_that_is_there_twice(tmp_path):
    path, files = "Stanford_Online_Products/Ebay_test.txt", sop_files()
    zipped(tmp_path / "raw" / ZIP, files | {path: files[path].replace(b"\n7 ", b"\n1 ")})
    assert "Ebay_test.txt gives the id 1 twice" in refused(sop, tmp_path / "raw")
    files = cub_files()
    files["CUB_200_2011/images.txt"] += b"1 another.jpg\n"
    tgz(tmp_path / "raw" / TGZ, files)
    assert "images.txt has the id 1 twice" in refused(cub, tmp_path / "raw")


def test_labels_that_contradict_the_classes(tmp_path):
    files = cub_files()
    path = "CUB_200_2011/image_class_labels.txt"
    files[path] = files[path].replace(b"\n2 1\n", b"\n2 4\n")
    tgz(tmp_path / "raw" / TGZ, files)
    message = refused(cub, tmp_path / "raw")
    assert message.startswith("the dataset's lists contradict each other: ") and "001.Black_footed_Albatross" in message


def test_a_bomb_of_pixels(tmp_path):
    """A PNG of 225 million black pixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (15_000, 15_000)).save(buffer, "PNG")
    tgz(tmp_path / "raw" / TGZ, cub_files() | {ALBATROSS: buffer.getvalue()})
    assert ": Image size (225000000 pixels) exceeds limit of" in refused(cub, tmp_path / "raw")


def test_an_encrypted_zip_is_not_the_one(tmp_path):
    lookalikes.inshop(tmp_path / "raw")
    path = tmp_path / "raw/img.zip"
    content = bytearray(path.read_bytes())
    for match in re.finditer(b"PK\x01\x02", bytes(content)):
        content[match.start() + 8] |= 1
    path.write_bytes(content)
    assert re.search("img.zip cannot be read .*encrypted, password required", refused(inshop, tmp_path / "raw"))


def test_a_missing_annotation_file(tmp_path):
    files = cub_files()
    del files["CUB_200_2011/image_class_labels.txt"]
    tgz(tmp_path / "raw" / TGZ, files)
    assert "holds no CUB_200_2011/image_class_labels.txt: this is another archive" in refused(cub, tmp_path / "raw")
    lookalikes.cars_combined(tmp_path / "cars")
    (tmp_path / "cars/cars_annos.mat").unlink()
    assert "cars/cars_annos.mat is missing: run the download stage" in refused(cars, tmp_path / "cars")


def test_a_missing_archive(tmp_path):
    assert f"{tmp_path}/raw/{TGZ} is missing: run the download stage" in refused(cub, tmp_path / "raw")


def test_annotations_that_name_missing_images(tmp_path):
    files = cub_files()
    gone = [name for name in files if "0009" in name]
    tgz(tmp_path / "raw" / TGZ, {name: content for name, content in files.items() if name not in gone})
    message = refused(cub, tmp_path / "raw")
    assert f"{TGZ} lacks 4 of the images that images.txt names:\n  " + "\n  ".join(sorted(gone)) in message


def test_duplicate_names(tmp_path):
    files = cub_files()
    tgz(tmp_path / "raw" / TGZ, files, [(member(ALBATROSS, files[ALBATROSS]), files[ALBATROSS])])
    name = ALBATROSS.removeprefix("CUB_200_2011/images/")
    assert (
        refused(cub, tmp_path / "raw")
        == f"images that cannot be used, fix or replace them: 1\n  {name}: the name comes twice"
    )
    files["CUB_200_2011/images.txt"] += f"13 {name}\n".encode()
    tgz(tmp_path / "raw" / TGZ, files)
    assert f"images.txt names {name} twice" in refused(cub, tmp_path / "raw")


def test_every_image_that_does_not_decode_is_named(tmp_path):
    files = cub_files()
    names = [name for name in files if name.endswith("_9.jpg")]
    files[names[0]] = b"<html>no image</html>"
    files[names[1]] = files[names[1]][:-200]
    files[names[2]] = b""
    tgz(tmp_path / "raw" / TGZ, files)
    message = refused(cub, tmp_path / "raw")
    assert message.startswith("images that cannot be used, fix or replace them: 3\n")
    assert all(name.removeprefix("CUB_200_2011/images/") in message for name in names[:3])
    assert message.count(": not an image") == 2
    assert "image file is truncated" in message


def test_an_empty_class(tmp_path, monkeypatch):
    files = cub_files()
    files["CUB_200_2011/image_class_labels.txt"] = files["CUB_200_2011/image_class_labels.txt"].replace(
        b" 2\n", b" 5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["convert", "cub"])
    tgz(tmp_path / "data/raw/cub" / TGZ, files)
    with pytest.raises(BadInputError, match="cub: the classes 2 have no image"):
        convert.main()
    assert not list(Path("data/packed").iterdir())


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (b"1000000000", r"the classes 2, 5, 6, .*, 23 and 999,999,976 more have no image"),
        (b"0", "has the class number 0"),
    ],
)
def test_a_class_number_that_cannot_be(tmp_path, monkeypatch, number, reason):
    """Numbers up to a billion are not listed, which would take gigabytes."""
    files, name = cub_files(), "CUB_200_2011/image_class_labels.txt"
    files[name] = files[name].replace(b" 2\n", b" " + number + b"\n")
    monkeypatch.chdir(tmp_path)
    tgz(tmp_path / "data/raw/cub" / TGZ, files)
    with pytest.raises(BadInputError, match=reason):
        convert.convert("cub", False)
    assert not list(Path("data/packed").iterdir())


def test_members_without_content_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_EMPTY", 50)
    empty = {f"CUB_200_2011/empty{number}": b"" for number in range(51)}
    tgz(tmp_path / "raw" / TGZ, empty | cub_files())
    assert "has more than 50 empty members, which is too much" in refused(cub, tmp_path / "raw")
    monkeypatch.setattr(archives, "MOST_MEMBERS", 10)
    tgz(tmp_path / "raw" / TGZ, cub_files())
    assert "has more than 10 members, which is too much" in refused(cub, tmp_path / "raw")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("images.txt", b"1 a.jpg extra\n", "images.txt line 1 has 3 fields, but 2 are expected"),
        ("images.txt", b"\xff\xfe", "images.txt is not text"),
        ("images.txt", b"99 a.jpg\n", "image_class_labels.txt lacks the id 99, which images.txt gives to a.jpg"),
        ("image_class_labels.txt", b"1 one\n", "image_class_labels.txt: 'one' should be a whole number"),
        ("images.txt", b"", "there is no image to pack"),
    ],
)
def test_annotations_that_cannot_be_read(tmp_path, name, content, reason):
    tgz(tmp_path / "raw" / TGZ, cub_files() | {f"CUB_200_2011/{name}": content})
    assert reason in refused(cub, tmp_path / "raw")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "cars_annos.mat is not a MATLAB file"),
        (lookalikes.mat(other=1), "cars_annos.mat has no annotations with relative_im_path and class"),
        (
            lookalikes.mat(annotations=lookalikes.annotations(["a", "a"], [1, 1], "relative_im_path"), class_names="x"),
            "cars_annos.mat names a twice",
        ),
        (
            lookalikes.mat(annotations=lookalikes.annotations(["a", "b"], [1, 5], "relative_im_path"), class_names="x"),
            "cars_annos.mat has the classes [5], but there are names for 1 only",
        ),
    ],
    ids=["web page", "other", "twice", "beyond"],
)
def test_cars_annotations_that_cannot_be_used(tmp_path, content, reason):
    lookalikes.cars_combined(tmp_path / "raw")
    (tmp_path / "raw/cars_annos.mat").write_bytes(content)
    assert reason in refused(cars, tmp_path / "raw")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("11\n", "12\n", "announces 12 images but lists 11"),
        ("query", "probe", "is 'probe', not one of train, query, gallery"),
        ("02_1_front", "02_0_front", "names img/MEN/Denim/id_00000002/02_0_front.jpg twice"),
        ("id_00000002 ", "item_two ", "'item_two' should be a whole number"),
        ("11\n", "<html>\n", "list_eval_partition.txt line 1: '<html>' should be a whole number"),
    ],
)
def test_inshop_lists_that_cannot_be_used(tmp_path, old, new, reason):
    lookalikes.inshop(tmp_path / "raw")
    path = tmp_path / "raw/list_eval_partition.txt"
    swap(path, old, new)
    assert reason in refused(inshop, tmp_path / "raw")


def test_members_are_the_same_in_any_order(tmp_path):
    files = cub_files()
    shuffled = [list(files)[place] for place in np.random.default_rng(0).permutation(len(files))]
    for name, order in (("a", list(files)), ("b", shuffled)):
        tgz(tmp_path / name / TGZ, {f"./{key}" if name == "b" else key: files[key] for key in order})
        pack(cub.images(tmp_path / name), tmp_path / "packed" / name)
    for file in ("images.bin", "index.csv"):
        assert (tmp_path / "packed/a" / file).read_bytes() == (tmp_path / "packed/b" / file).read_bytes()
