"""The verb `report`."""

from ragjax.cli import main


def test_report_writes_to_the_file_it_is_given(monkeypatch, capsys):
    monkeypatch.setattr("ragjax.report.write_report", lambda run, out: f"{run} in {out}")
    for flags, out in (([], None), (["--out", "page.html"], "page.html")):
        main(["report", "/run", *flags])
        assert capsys.readouterr().out == f"/run in {out}\n"
