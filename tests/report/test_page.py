import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from ragjax.report import write_report

VOID = {"br", "hr", "link", "meta"}
HOSTILE = "</script></style><img src=x onerror=alert(1)><!-- \x00\ud800 \u202e"


class Page(HTMLParser):
    """Checks that every element is closed in order, and keeps what the tests look at."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.ids, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({key for key, _ in attrs}) == len(attrs), f"attribute twice in {tag}"
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


def written(run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_report_lies_in_the_run_folder_or_where_asked(make_run, tmp_path):
    run = make_run()
    assert write_report(run) == run / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report(run, elsewhere) == elsewhere
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()
    assert [p.name for p in elsewhere.parent.iterdir()] == ["page.html"]


def test_the_page_is_well_formed_and_its_links_lead_somewhere(make_run):
    page = Page(written(make_run()))
    assert len(page.ids) == len(set(page.ids))
    targets = {v[1:] for _, key, v in page.attributes if key == "href" and v.startswith("#")}
    assert targets == {"main", "models", "trade", "learning", "zeros", "samples", "use", "method", "run"}
    labels = {v for _, key, v in page.attributes if key == "aria-labelledby"}
    assert targets <= set(page.ids)
    assert labels <= set(page.ids)
    assert page.tags.count("h1") == 1
    assert page.tags.count("table") == page.tags.count("caption")


def test_measured_speed_has_a_section_of_its_own(make_run, make_bench):
    page = Page(written(make_bench(make_run())))
    assert "frontier" in page.ids
    assert ("a", "href", "#frontier") in page.attributes
    assert page.tags.count("table") == page.tags.count("caption")


def test_nothing_is_loaded_from_elsewhere(make_run):
    text = written(make_run())
    page = Page(text)
    outside = [
        (tag, value)
        for tag, key, value in page.attributes
        if key in ("src", "href", "srcset", "action", "data", "poster")
        and not value.startswith(("#", "data:,"))
    ]
    assert outside == []
    assert not re.search(r"https?://|@import|url\(|//cdn", text)
    assert "default-src 'none'" in text


def test_the_policy_allows_the_page_s_own_script_and_no_other(make_run):
    text = written(make_run())
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_hostile_text_stays_text(make_run, summary, config, metrics):
    summary |= {"seed": HOSTILE, "git": HOSTILE, "data": {HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    summary |= {"device": {"kind": HOSTILE, "name": HOSTILE}, "ragjax": HOSTILE, "seconds": {HOSTILE: 1.0}}
    config |= {HOSTILE: HOSTILE, "teacher": {HOSTILE: [HOSTILE]}}
    masks = {"student": [{"name": HOSTILE, "layer": 0, "size": 10, "zeros": 5}]}
    samples = [dict.fromkeys(("prompt", "teacher", "student", "control", HOSTILE), HOSTILE)]
    metrics += [
        {"stage": HOSTILE, "step": 1, "loss": HOSTILE},
        {"stage": "student", "step": 1, "loss": HOSTILE},
    ]
    page = Page(
        written(make_run(summary=summary, config=config, masks=masks, samples=samples, metrics=metrics))
    )
    assert "img" not in page.tags
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert page.text.count(shown) >= 12


def test_hostile_figures_of_speed_stay_text(make_run, make_bench):
    run = make_bench(make_run())
    value = json.loads((run / "bench.json").read_text())
    value |= {"machine": HOSTILE, "options": {HOSTILE: HOSTILE}}
    value["models"][2] |= {key: HOSTILE for key in ("model", "weights", "engine", "why", "folder")}
    value["models"][2]["perplexity"] = None
    (run / "bench.json").write_text(json.dumps(value))
    page = Page(written(run))
    assert "img" not in page.tags
    assert page.tags.count("script") == page.tags.count("style") == 1
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert page.text.count(shown) >= 4


@pytest.mark.parametrize(
    ("missing", "sections"),
    [("metrics", {"learning"}), ("masks", {"zeros"}), ("samples", {"samples"}), ("config", set())],
)
def test_a_section_without_input_is_left_out(make_run, missing, sections):
    whole = set(Page(written(make_run())).ids)
    run = make_run()
    (run / ("metrics.jsonl" if missing == "metrics" else f"{missing}.json")).unlink()
    page = Page(written(run))
    left_out = {name for name in whole - set(page.ids) if not name.endswith("-title")}
    assert left_out == sections
    if missing == "config":
        assert "The whole config" not in page.text


def test_two_bare_models_make_a_page(make_run):
    bare = {"teacher": {}, "student": {}}
    page = Page(written(make_run(summary=bare, metrics=None, config=None, masks=None, samples=None)))
    assert {"models", "use", "method", "run"} <= set(page.ids)
    assert "cannot be used" in page.text


def test_losses_that_are_not_finite_do_not_break_the_page(make_run, metrics):
    for line in metrics[20:24]:
        line["cross_entropy"] = line["loss"] = float("nan")
    metrics[30]["cross_entropy"] = float("inf")
    text = written(make_run(metrics=metrics))
    page = Page(text)
    assert "× marks a value that was not finite." in page.text
    geometry = [v for _, key, v in page.attributes if key in ("d", "x", "y", "cx", "cy", "width", "height")]
    assert not [value for value in geometry if re.search("nan|inf", value, re.IGNORECASE)]


def test_metrics_without_one_finite_loss_leave_the_curves_out(make_run):
    lines = [{"stage": "student", "step": s, "loss": float("nan")} for s in (1, 2)]
    assert "learning" not in Page(written(make_run(metrics=lines))).ids


def test_the_commands_name_the_run_even_with_a_space_in_it(make_run, tmp_path):
    run = make_run().rename(tmp_path / "my run")
    text = Page(written(run)).text
    assert f'AutoModelForCausalLM.from_pretrained("{run}/student")' in text
    assert f"ragjax generate '{run}' --prompt " in text
    assert f"ragjax compress '{run}/config.json' --workdir '{run}-again'" in text


def test_a_report_needs_no_jax(make_run):
    code = (
        "import sys; from pathlib import Path; from ragjax.report import write_report; "
        "write_report(Path(sys.argv[1])); print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_run())], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
