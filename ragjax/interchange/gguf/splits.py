"""How byte-level tokenizers cut a text into words before they merge, by the names GGUF has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Split(NamedTuple):
    """One way of cutting."""

    pattern: str | None = None
    """Regular expression of a word; none: that of GPT-2."""
    single_digits: bool = False
    """Whether each digit is a word."""
    whole_words: bool = False
    """Whether a word that is a token needs no merges to become one."""
    begins: bool = False
    """Whether texts begin with the token that says so, unless the file says otherwise."""
    composed: bool = False
    """Whether letters and their accents are put together first (Unicode's NFC), as llama.cpp does not."""

    def pre_tokenizer(self) -> PreTokenizer:
        """As the library tokenizers has it."""
        from tokenizers import Regex, pre_tokenizers

        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        if self.pattern is not None:
            cut = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated")
            return pre_tokenizers.Sequence([cut, bytes_of])
        if self.single_digits:
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of])
        return bytes_of


SPLITS: dict[str, Split] = {
    "gpt-2": Split(),
    "smollm": Split(single_digits=True),
    "llama-bpe": Split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}", whole_words=True, begins=True),
    "qwen2": Split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}", composed=True),
}
"""By `tokenizer.ggml.pre`."""

SYNONYMS = {
    "default": "gpt-2",
    "phi-2": "gpt-2",
    "olmo": "gpt-2",
    "starcoder": "smollm",
    "refact": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}
"""Other names of the same; a file that has none is of the time when there was but GPT-2's."""

PROBE = (
    "Hello  world, it's 3 o'clock; they'LL've 'RE'd I'M we're HE'S 'tis don't\n\n\n \t\t tabs \t and"
    "\r\nlines\r\n \n   spaces    before 1 12 123 1234 12345678 3.14 1,000,000 x2y3z ٣٤٥ ½²Ⅷ a1b22c333 "
    "CamelCase snake_case HTTPServer #hash @at $9.99 50% <tag/> [a](b) {c} f(x)=x**2; //comment\n/path/to "
    "... !!!?? naïve café cafe\u0301 Ünïcödé ЖЩ Привет こんにちは世界 漢字かな 한국어 ไทย "
    "हिन्दी العربية עברית 🙂👩\u200d👩\u200d👧🇩🇪 \u00a0\u2003\u2028 “quotes” —dash… ﬁ \u200b zero "
    "\ufeff end\n  "
)
"""A text over which different ways of cutting come apart."""
