from ragjax.report import verdict
from ragjax.report.read import read_run


def said(make_run, summary) -> str:
    return " ".join(verdict.sentences(read_run(make_run(summary=summary)))).replace("\u00a0", " ")


def headline(make_run, summary) -> str:
    return verdict.headline(read_run(make_run(summary=summary))).replace("\u00a0", " ")


def test_a_good_student(make_run, summary):
    # 31.5 / 30 = 1.05; 11,838,464 / 21,315,584 = 0.5554; 9000 / 5000 = 1.8; 33.6 - 31.5 = 2.1.
    assert said(make_run, summary) == (
        "On held-out text the student’s perplexity is 31.50 against 30.00: 5 % worse. "
        "It takes 44 % fewer bytes (11.8 MB against 21.3 MB), has 3 of the teacher’s 6 layers, "
        "and has 50 % of its prunable weights at zero. "
        "It reads text 1.8 times as fast as the teacher on this machine. "
        "Distillation itself is worth 2.10 perplexity: "
        "the control, trained the same way without the teacher, ends at 33.60. "
        "A model of the same shape trained from a random start ends at 45.20."
    )
    assert headline(make_run, summary) == "44 % smaller, 1.8 times as fast, 5 % higher perplexity"


def test_a_student_worse_than_its_control_is_said_to_be(make_run, summary):
    summary["control"]["perplexity"] = 30.25
    text = said(make_run, summary)
    assert "Distillation did not pay here" in text
    assert "is better by 1.25 perplexity (30.25)" in text
    assert "worth" not in text


def test_a_student_as_good_as_its_control_gained_nothing(make_run, summary):
    summary["control"]["perplexity"] = 31.51
    assert "Distillation itself made no measurable difference" in said(make_run, summary)


def test_without_a_control_nothing_is_claimed_for_distillation(make_run, summary):
    del summary["control"]
    assert "No control was trained, so what distillation itself contributed is unknown." in said(
        make_run, summary
    )
    summary["control"] = {"perplexity": float("nan")}
    assert "the control has no comparable perplexity" in said(make_run, summary)


def test_a_slower_student_is_said_to_be(make_run, summary):
    summary["student"] |= {
        "speed_vs_teacher": 0.87, "tokens_per_second_rounds": [4300, 4350, 4400, 4350, 4300],
    }  # fmt: skip
    text = said(make_run, summary)
    assert "It is slower than the teacher on this machine: it reads text at 0.87 times the speed." in text
    assert headline(make_run, summary) == "44 % smaller, 0.87 times as fast, 5 % higher perplexity"


def test_speed_is_not_claimed_where_the_rounds_disagree(make_run, summary):
    # The rounds' ratios are 5390/4900 = 1.1 down to 4752/4950 = 0.96.
    summary["student"] |= {
        "speed_vs_teacher": 1.05, "tokens_per_second_rounds": [5390, 5250, 5300, 5250, 4752],
    }  # fmt: skip
    text = said(make_run, summary)
    assert "reads text no faster than the teacher on this machine (1.05 times as fast" in text
    assert "rounds from 0.96 to 1.10" in text
    assert "no faster" in headline(make_run, summary)


def test_speed_is_taken_from_the_rates_where_the_ratio_is_missing(make_run, summary):
    del summary["student"]["speed_vs_teacher"]
    assert "1.8 times as fast" in said(make_run, summary)


def test_a_larger_and_better_student(make_run, summary):
    summary["student"] |= {"stored_bytes": 1.1 * summary["teacher"]["stored_bytes"], "perplexity": 27.0}
    text = said(make_run, summary)
    assert "27.00 against 30.00: 10 % better" in text
    assert "takes 10 % more bytes" in text
    assert headline(make_run, summary).startswith("10 % larger,")
    assert headline(make_run, summary).endswith("10 % lower perplexity")


def test_a_ruined_student_is_not_softened(make_run, summary):
    summary["student"]["perplexity"] = 150.0
    assert headline(make_run, summary).endswith("5.0 times the perplexity")
    assert "150.0 against 30.00: 5.0 times as high." in said(make_run, summary)
    summary["student"]["perplexity"] = float("inf")
    assert "missing or not finite: this student cannot be used" in said(make_run, summary)
    assert headline(make_run, summary).endswith("quality not measurable")


def test_bare_figures_are_enough(make_run):
    text = said(make_run, {"teacher": {"perplexity": 20}, "student": {"perplexity": 20}})
    assert text.startswith(
        "On held-out text the student’s perplexity is 20.00 against 20.00: no measurable loss."
    )
    assert "faster" not in text
    assert "bytes" not in text
