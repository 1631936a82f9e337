"""The report: its numbers are the runs', it needs nothing from outside, and strange names do no harm."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser

import polars as pl
import pytest

from firstlight.cli.app import call, run
from firstlight.core.errors import InputError

pytest.importorskip("matplotlib")

TRAIN = [
    "--threads",
    "1",
    "--set",
    "model.dim=8",
    "--set",
    "training.batch_size=512",
    "--set",
    "training.eval_every=2",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world whose titles are hostile, two runs on it, and their report."""
    folder = tmp_path_factory.mktemp("report")
    world = ["--users", "100", "--items", "60", "--set", "mean_clicks=14", "--set", "cover_size=16"]
    call(["simulate", str(folder / "world"), *world])
    call(["data", "split", str(folder / "world"), str(folder / "data"), "--by", "cold-items"])
    runs = {
        "popularity": ["--model", "popularity"],
        "mhcr": ["--model", "mhcr", "--negatives", "all", "--epochs", "4", *TRAIN],
        "mf": ["--model", "mf", "--loss", "adap-tau", "--epochs", "4", *TRAIN],
    }
    for name, words in runs.items():
        call(["train", str(folder / "data"), "--out", str(folder / name), *words])
    words = ["report", *(str(folder / name) for name in runs), "--title", "<b>A & B</b>"]
    return folder, call([*words, "--out", str(folder / "page" / "report.html")])


class Page(HTMLParser):
    """Collects tags, and checks that they nest."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_needs_nothing_from_outside(made):
    folder, answer = made
    text = (folder / "page" / "report.html").read_text()
    page = Page(text)
    addresses = [a.get("src", a.get("href", "")) for a in (*page.all("img"), *page.all("a"))]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not page.all("script")
    assert not page.all("link")
    assert "url(" not in text
    names = ["curves", "groups", "protocols", "temperatures"]
    assert [path.rsplit("/", 1)[1] for path in answer["pictures"]] == [f"{name}.png" for name in names]
    assert answer["bytes"] == len(text.encode())


def test_its_numbers_are_those_of_evaluate_and_compare(made):
    folder, answer = made
    page = Page((folder / "page" / "report.html").read_text())
    for name in ("popularity", "mhcr"):
        found = call(["evaluate", str(folder / name), "--protocol", "cold", "-k", "20"])
        for protocol, entry in found["protocols"].items():
            value = entry["metrics"]["recall@20"]
            assert answer["recall"][name][protocol] == pytest.approx(value)
            assert f"{value:.3f}" in page.text
        assert answer["recall"][name]["harmonic"] == pytest.approx(found["harmonic"]["metrics"]["recall@20"])
    rows = call(["compare", *(str(folder / name) for name in ("popularity", "mhcr", "mf"))])["comparison"]
    row = next(row for row in rows if row["name"] == "mhcr" and row["metric"] == "recall@20")
    assert f"{row['difference']:+.4f}" in page.text


def never(*_, **__):
    raise AssertionError("everything was ranked again")


def test_recorded_numbers_are_read_and_nothing_is_ranked_again(made, tmp_path, monkeypatch):
    folder, first = made
    runs = [str(folder / name) for name in ("popularity", "mhcr", "mf")]
    # The first report had no numbers to read, and left what it ranked with the runs.
    assert set(first["numbers"].values()) == {"ranked for this report"}
    monkeypatch.setattr("firstlight.training.recorded.assess_cold", never)
    again = call(["report", *runs, "--out", str(tmp_path / "again.html")])
    assert again["recall"] == first["recall"]
    record = folder / "mhcr" / "evaluation" / "cold-20.json"
    assert again["numbers"]["mhcr"] == f"numbers read from {record}"
    assert f"numbers read from {record}" in Page((tmp_path / "again.html").read_text()).text
    texts = [(folder / "page" / "report.html").read_text(), (tmp_path / "again.html").read_text()]
    tables = [re.findall(r"<table>.*?</table>", text, re.S)[:2] for text in texts]
    assert tables[0] == tables[1]
    with pytest.raises(AssertionError, match="ranked again"):
        call(["report", *runs, "-k", "5", "--out", str(tmp_path / "five.html")])


def test_what_evaluate_found_is_read_and_other_runs_numbers_are_not(made, tmp_path, monkeypatch):
    import shutil

    folder, first = made
    shutil.copytree(folder / "mf", tmp_path / "mf", ignore=shutil.ignore_patterns("evaluation"))
    found = call(["evaluate", str(tmp_path / "mf"), "--protocol", "cold"])
    record = tmp_path / "mf" / "evaluation" / "cold-10-20-50.json"
    assert json.loads(record.read_text())["protocols"] == found["protocols"]
    words = ["report", str(tmp_path / "mf"), "--out", str(tmp_path / "r.html")]
    with monkeypatch.context() as patch:
        patch.setattr("firstlight.training.recorded.assess_cold", never)
        answer = call(words)
    assert answer["recall"]["mf"] == pytest.approx(first["recall"]["mf"])
    others = folder / "mhcr" / "evaluation" / "cold-20.json"
    for name in (others, others.with_suffix(".parquet")):
        shutil.copy(name, record.parent / name.name)
    record.unlink()
    assert call(words)["numbers"]["mf"] == "ranked for this report"
    assert call(words)["recall"]["mf"] == pytest.approx(first["recall"]["mf"])


def test_recall_by_clicks_is_that_of_these_clicks_alone(made):
    from firstlight.evaluation.ranking import evaluate_ranking
    from firstlight.reports.measures import group_values
    from firstlight.reports.sources import measured
    from firstlight.training.run_folder import load_run

    folder, _ = made
    values = group_values(measured([folder / "mf"], 20)[0], 20)
    run = load_run(folder / "mf")
    degrees, test = run.seen.item_degrees, run.parts["test"]
    assert set(values) == {"0", "6–20", "21–100"}
    for name, (low, high) in {"0": (0, 0), "6–20": (6, 20), "21–100": (21, 100)}.items():
        wanted = test.select(((degrees >= low) & (degrees <= high))[test.items])
        own = evaluate_ranking(
            run.scorer, wanted, [run.seen, run.parts["valid"]], (20,), seed=run.config.seed
        )
        assert values[name].value == pytest.approx(own.metrics["recall@20"])
        assert (values[name].low, values[name].high) == pytest.approx(own.intervals["recall@20"])


def test_it_says_how_the_numbers_came_about(made):
    folder, _ = made
    page = Page((folder / "page" / "report.html").read_text())
    data = json.loads((folder / "mhcr" / "dataset.json").read_text())
    assert data["content_hash"] in page.text
    assert data["split"]["hash"] in page.text
    assert f"firstlight train {folder}/data --out {folder}/mhcr --model mhcr" in page.text
    assert "epochs chosen on validation" in page.text
    assert {"torch", "python", "processor"} <= set(re.findall(r"[a-z]+", page.text))


def test_pictures_and_tables_can_be_read_without_eyes(made):
    folder, _ = made
    page = Page((folder / "page" / "report.html").read_text())
    assert page.all("html")[0]["lang"] == "en"
    figures = [image for image in page.all("img") if image["src"].startswith("data:image/png")]
    assert len(figures) == 4
    assert all(len(image["alt"]) > 30 for image in figures)
    assert all("alt" in image for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    anchors = {a["href"][1:] for a in page.all("a")}
    assert anchors <= {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_names_are_text_and_never_markup(made):
    folder, _ = made
    text = (folder / "page" / "report.html").read_text()
    assert "<b>A &" not in text
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;" in text


def test_lists_are_those_of_recommend_and_hits_are_marked(made, tmp_path):
    folder, _ = made
    user = call(["report", str(folder / "mhcr"), "--out", str(tmp_path / "r.html")])["users"][0]
    answer = call(["report", str(folder / "mhcr"), "--users", user, "--out", str(tmp_path / "one.html")])
    assert answer["users"] == [user]
    lists = call(["recommend", str(folder / "mhcr"), "--users", user, "-k", "8"])["lists"][user]
    items = pl.read_parquet(folder / "data" / "items.parquet")
    titles = dict(zip(items["item"], items["title"], strict=True))
    page = Page((tmp_path / "one.html").read_text())
    wall = [attributes for tag, attributes in page.tags if tag == "li" and "title" in attributes]
    assert [li["title"] for li in wall[-8:]] == [titles[entry["item"]] for entry in lists]
    log = pl.read_parquet(folder / "data" / "interactions.parquet")
    later = set(log.filter((pl.col("user") == user) & (pl.col("split") == "test"))["item"])
    assert [li.get("class") == "found" for li in wall[-8:]] == [entry["item"] in later for entry in lists]


def test_one_run_and_runs_of_other_data(made, tmp_path):
    folder, _ = made
    call(["data", "split", str(folder / "world"), str(tmp_path / "other"), "--by", "random", "--seed", "9"])
    call(["train", str(tmp_path / "other"), "--model", "popularity", "--out", str(tmp_path / "other-run")])
    assert run(["report", str(tmp_path / "other-run"), "--out", str(tmp_path / "a.html")]) == 0
    both = [str(folder / "popularity"), str(tmp_path / "other-run")]
    assert run(["report", *both, "--out", str(tmp_path / "b.html")]) == 0
    assert (
        "Not compared: the runs were tested on different data" in Page((tmp_path / "b.html").read_text()).text
    )


def test_a_dataset_that_moved_leaves_ids(made, tmp_path, capfd):
    import shutil

    folder, _ = made
    shutil.copytree(folder / "mf", tmp_path / "mf")
    about = json.loads((tmp_path / "mf" / "dataset.json").read_text())
    (tmp_path / "mf" / "dataset.json").write_text(json.dumps({**about, "path": str(tmp_path / "gone")}))
    assert run(["report", str(tmp_path / "mf"), "--out", str(tmp_path / "r.html")]) == 0
    assert "not where it was" in capfd.readouterr().err
    assert 'src="data:image/jpeg' not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "report.pdf"], "does not end in .html"),
        (["--users", "nobody"], "user 'nobody' is unknown"),
        (["--probe", "nowhere"], "this is no probe"),
    ],
)
def test_bad_input_of_report(made, tmp_path, monkeypatch, words, said):
    folder, _ = made
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        call(["report", str(folder / "mf"), *words])


def test_the_encoder_over_depth_stands_in_it_where_it_was_probed(made, tmp_path):
    folder, _ = made
    row = {"after_final_norm": False, "pooling": "class", "k": 10, "standard_error": 0.01}
    knn = [{**row, "block": block, "accuracy": accuracy} for block, accuracy in enumerate((0.3, 0.4, 0.36))]
    probe = {
        "tasks": ["knn"],
        "images": {"queries": {"images": 500}, "bank": {"images": 2000}, "classes": ["a", "b"]},
        "pixels": [{"k": 10, "accuracy": 0.35, "standard_error": 0.01}],
        "encoders": [{"name": "mae", "depth": 3, "knn": knn}],
        "paired": [],
    }
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    call(["report", str(folder / "mf"), "--probe", str(tmp_path), "--out", str(tmp_path / "r.html")])
    text = Page((tmp_path / "r.html").read_text()).text
    assert "mae sees most at block 1 (class token): 40.0 %" in text
    assert (tmp_path / "r-pictures" / "depth.png").exists()
