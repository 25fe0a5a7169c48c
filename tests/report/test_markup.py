from ragjax.report.markup import Markup, escaped, joined, tag


def test_everything_but_markup_is_escaped_in_text_and_attributes():
    assert escaped("<&\">'") == "&lt;&amp;&quot;&gt;&#x27;"
    assert tag("p", "<b>", title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;</p>'
    assert tag("p", tag("b", 1)) == "<p><b>1</b></p>"
    assert joined(["a<", None, Markup("<br>")], "&") == "a&lt;&amp;<br>"


def test_absent_attributes_are_left_out():
    assert tag("td", class_=None, hidden=True, data_x=0, open=False) == '<td hidden data-x="0"></td>'


def test_characters_html_cannot_hold_are_replaced():
    text = escaped("a\x00b\x1bc\ud800d\x85\r\ne\tf")
    assert text == "a�b�c�d�\ne\tf"
    text.encode("utf-8")
