"""What is known of each data set: who publishes it where, under which terms, and how its files are laid out.

A checksum stands here only where its publisher states it, or another project that fetched the same address; it is
never one of ours. Where there is none, the first fetch records one (``kunet.data.sets.fetch``).

Sources of the checksums:
    DIV2K       TensorFlow Datasets, url_checksums/div2k.txt (SHA-256)
    Kodak24     codec benchmarks that pin r0k.us: `sha256sum kodim*.png | sha256sum`
    McMaster    the demosaicking benchmark SoftMenon, whose DIV2K checksum is TensorFlow's (SHA-256)
    REDS        the author's own repository, Git LFS pointer of train_sharp.zip (SHA-256)
    SIDD        the publisher's download page (MD5)
    Urban100    deepinv, of the archive at Hugging Face (MD5)
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file to download: its address, and its published checksum as "sha256:..." or "md5:...", or None."""

    url: str
    checksum: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A published set of images, or of pairs of a degraded and a clean image.

    Args:
        name: what recipes and the command line call it, and its folder's name.
        title, task, use: its published name, the task it serves, and whether for "train", "validation" or "test".
        images: how many clean images there are.
        clean, degraded: regular expressions for the whole path of a file below the set's folder, on each side. The
            first group is what two partners have in common. No ``degraded``: there are no pairs.
        sizes: the (width, height) that occur, 0 for any number; empty where they are not fixed.
        megabytes: of the download (10^6 bytes), 0 where it is not known.
        licence, page: the terms as the publisher states them, and the publisher's page.
        files: zip and tar archives, or the images one by one; none where a person has to fetch them ``by_hand``.
        digest: SHA-256 of the lines "SHA-256  name" of all images, as `sha256sum * | sha256sum` prints it, if known.
        password: of the archive, as the page publishes it.
        by_hand: what to do where no program may fetch the files.
    """

    name: str
    title: str
    task: str
    use: str
    images: int
    clean: str
    degraded: str = ""
    sizes: tuple[tuple[int, int], ...] = ()
    megabytes: int = 0
    licence: str
    page: str
    files: tuple[File, ...] = ()
    digest: str = ""
    password: str = ""
    by_hand: str = ""

    @property
    def kind(self) -> str:
        """What is downloaded: "zip", "tar", "images", or "by hand" (nothing)."""
        if not self.files:
            return "by hand"
        return {"zip": "zip", "gz": "tar", "tgz": "tar", "tar": "tar"}.get(self.files[0].name.rsplit(".")[-1], "images")

    @property
    def checksums(self) -> str:
        """Whose they are: "published", "published in part", "of the first download", or "none" (by hand)."""
        if not self.files:
            return "none"
        known = len(self.files) if self.digest else sum(bool(file.checksum) for file in self.files)
        return {0: "of the first download", len(self.files): "published"}.get(known, "published in part")

    @property
    def count(self) -> str:
        """The number of images, or of pairs."""
        return f"{self.images:,} {'pairs' if self.degraded else 'images'}"

    @property
    def size(self) -> str:
        """The sizes in pixels, for reading."""
        if any(0 in size for size in self.sizes):
            return f"long side {max(self.sizes[0])}"
        return ", ".join(f"{width}x{height}" for width, height in self.sizes) or "varied"

    @property
    def download(self) -> str:
        """The size of the download, for reading."""
        if not self.megabytes:
            return "unknown"
        return f"{self.megabytes} MB" if self.megabytes < 1000 else f"{self.megabytes / 1000:.1f} GB"


BERKELEY = """
101085 101087 102061 103070 105025 106024 108005 108070 108082 109053 119082 12084 123074 126007 130026 134035 14037
143090 145086 147091 148026 148089 157055 159008 160068 16077 163085 167062 167083 170057 175032 175043 182053
189080 19021 196073 197017 208001 210088 21077 216081 219090 220075 223061 227092 229036 236037 24077 241004 241048
253027 253055 260058 271035 285079 291000 295087 296007 296059 299086 300091 302008 304034 304074 306005 3096 33039
351093
""".split()
"""The images of CBSD68, by their numbers in the Berkeley set."""

REDS = "https://huggingface.co/datasets/snah/REDS/resolve/62dc25d16e6f43d2214f1b365023abda86f7a0ae"
"""The author's repository, at the revision whose train_sharp.zip has the checksum below."""

# The layouts in which the rain sets go round: rain/norain-1x2.png (the authors'), rain/X2/norain-1x2.png,
# rainy/rain-001.png and rain-1.png beside norain-1.png (PReNet's).
RAINY = r"(?:.*/)?(?:rain/(?:X2/)?norain|rain)-0*(\d+)(?:x2)?\.png"
RAINLESS = r"(?!(?:.*/)?rain/)(?:.*/)?norain-0*(\d+)\.png"


def _rain(name: str, title: str, use: str, images: int) -> DataSet:
    return DataSet(
        name=name, title=title, task="derain", use=use, images=images, clean=RAINLESS, degraded=RAINY,
        licence="not stated",
        page="https://www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html",
        by_hand="get it as first published from the links in https://github.com/csdwren/PReNet (the authors' page"
        " has other files by now) and unpack it",
    )  # fmt: skip


def _reds(name: str, use: str, split: str, images: int, megabytes: int, sharp: str | None = None) -> DataSet:
    return DataSet(
        name=name, title="REDS", task="deblur", use=use, images=images, sizes=((1280, 720),), megabytes=megabytes,
        clean=rf"(?:.*/)?{split}_sharp/(\d{{3}}/\d{{8}})\.png",
        degraded=rf"(?:.*/)?{split}_blur_jpeg/(\d{{3}}/\d{{8}})\.jpg",
        licence="CC BY 4.0", page="https://seungjunnah.github.io/Datasets/reds.html",
        files=(File(f"{REDS}/{split}_sharp.zip", sharp), File(f"{REDS}/{split}_blur_jpeg.zip")),
    )  # fmt: skip


def _div2k(name: str, use: str, archive: str, images: int, megabytes: int, clean: str, checksum: str) -> DataSet:
    return DataSet(
        name=name, title="DIV2K", task="denoise", use=use, images=images, sizes=((2040, 0), (0, 2040)),
        megabytes=megabytes, clean=rf"(?:.*/)?({clean})\.png", licence="academic research only",
        page="https://data.vision.ee.ethz.ch/cvl/DIV2K/",
        files=(File(f"https://data.vision.ee.ethz.ch/cvl/DIV2K/{archive}", f"sha256:{checksum}"),),
    )  # fmt: skip


_ALL = (
    DataSet(
        name="cbsd68", title="CBSD68", task="denoise", use="test", images=68, megabytes=18,
        clean=r"(?:.*/)?(\d+)\.png", sizes=((481, 321), (321, 481)),
        licence="non-commercial research and education",
        page="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds/",
        files=tuple(
            File(f"https://raw.githubusercontent.com/cszn/FFDNet/master/testsets/CBSD68/{n}.png") for n in BERKELEY
        ),
    ),
    DataSet(
        name="kodak24", title="Kodak24", task="denoise", use="test", images=24, megabytes=15,
        clean=r"(?:.*/)?(kodim\d\d)\.png", sizes=((768, 512), (512, 768)),
        licence="released for unrestricted usage", page="https://r0k.us/graphics/kodak/",
        files=tuple(File(f"https://r0k.us/graphics/kodak/kodak/kodim{i:02d}.png") for i in range(1, 25)),
        digest="3eaa5bd52eb8c894d351cf607028f5d3d80e778fd0267eeff8c73d66539a25d5",
    ),
    DataSet(
        name="mcmaster", title="McMaster", task="denoise", use="test", images=18, megabytes=13,
        clean=r"(?:.*/)?(\d+)\.tif", sizes=((500, 500),), licence="not stated",
        page="https://www4.comp.polyu.edu.hk/~cslzhang/CDM_Dataset.htm",
        files=(
            File(
                "https://www4.comp.polyu.edu.hk/~cslzhang/DATA/McM.zip",
                "sha256:6c3eaba44ab5801f155cc470d12125d5fe18f6f2fbaad363353e5e92667023c1",
            ),
        ),
        password="McM_CDM",
    ),
    DataSet(
        name="urban100", title="Urban100", task="denoise", use="test", images=100, megabytes=135,
        clean=r"(?:.*/)?(img_\d{3})\.png", licence="Creative Commons, photo by photo (Flickr)",
        page="https://github.com/jbhuang0604/SelfExSR",
        files=(
            File(
                "https://huggingface.co/datasets/eugenesiow/Urban100/resolve/main/data/Urban100_HR.tar.gz",
                "md5:65d9d84a34b72c6f7ca1e26a12df1e4c",
            ),
        ),
    ),
    _div2k(
        "div2k", "train", "DIV2K_train_HR.zip", 800, 3531, r"0[0-7]\d\d|0800",
        "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
    ),
    _div2k(
        "div2k_valid", "validation", "DIV2K_valid_HR.zip", 100, 449, r"08(?!00)\d\d|0900",
        "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
    ),
    DataSet(
        name="lsdir", title="LSDIR", task="denoise", use="train", images=84_991, megabytes=155_000,
        clean=r"(?:.*/)?00\d{5}/(00\d{5})\.png", licence="academic research only",
        page="https://ofsoundof.github.io/lsdir-data/",
        by_hand="log in at https://huggingface.co/ofsoundof/LSDIR, accept its conditions, download shard-00.tar.gz to"
        " shard-16.tar.gz and unpack them all",
    ),
    DataSet(
        name="sidd_small", title="SIDD-Small sRGB", task="denoise", use="train", images=160, megabytes=6616,
        clean=r"(?:.*/)?([^/]+)/GT_SRGB_\d+\.PNG", degraded=r"(?:.*/)?([^/]+)/NOISY_SRGB_\d+\.PNG", licence="MIT",
        page="https://abdokamel.github.io/sidd/",
        files=(
            File("http://130.63.97.225/share/SIDD_Small_sRGB_Only.zip", "md5:796971867583bf14677dcae510e52538"),
        ),
    ),
    _reds(
        "reds", "train", "train", 24_000, 35_440,
        "sha256:620294c1c3f23ed26c5ea228633770469c0b28e57d31eb41dc77deb401c6681b",
    ),
    _reds("reds_valid", "validation", "val", 3000, 4415),
    _rain("rain100l", "Rain100L", "test", 100),
    _rain("rain100h", "Rain100H", "test", 100),
    _rain("raintrainl", "RainTrainL", "train", 200),
    _rain("raintrainh", "RainTrainH", "train", 1800),
)  # fmt: skip

SETS = {data_set.name: data_set for data_set in _ALL}
"""The data sets by name."""
