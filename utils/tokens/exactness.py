"""On which texts a fast encoder is compared with `tokenizers`: hard ones, the first of a corpus, and a sample."""

import unicodedata
from collections.abc import Iterable, Sequence


FIRST_CHARACTERS = 100_000  # the first documents are compared until they have as many
ONE_IN = 128  # documents compared after that
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # times a number, modulo 2**64: evenly distributed, and like no pattern in a text


SCRIPTS = [
    "The quick brown fox, it's said, doesn't jump over 3.14 lazy dogs — “never”!",  # Latin
    "Blåbærsyltetøy på ferdaskrivaren, Ærlig talt: å være eller ikke være.",
    "L’été où l’œuvre naïve coûtait 1 234,56 € ; ça va ? Garçon !",
    "Straße, GROẞ, Übergrößenträger, İstanbul, ılık, Đặng Thị Ngọc Thịnh",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. Σίσυφος ΣΑΣ",  # Greek
    "Съешь ещё этих мягких французских булок, да выпей чаю. Ґанок, ў",  # Cyrillic
    "Խուսափել վաղ մահվանից։ և ԵՎ",  # Armenian
    "საქართველო ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ",  # Georgian
    "דג סקרן שט בים מאוכזב, שָׁלוֹם עֲלֵיכֶם",  # Hebrew
    "نص حكيم له سر قاطع، السَّلَامُ عَلَيْكُمْ ١٢٣ ﷺ ﻻ",  # Arabic
    "ऋषियों को सताने वाले दुष्ट राक्षस क्ष्म १२३ ज़िंदगी",  # Devanagari
    "আমার সোনার বাংলা ক্ষুদ্র ১২৩",  # Bengali
    "ਪੰਜਾਬੀ ਗੁਰਮੁਖੀ ੧੨੩",  # Gurmukhi
    "ગુજરાતી લિપિ ૧૨૩",  # Gujarati
    "தமிழ் மொழி கொக்கு ௧௨௩",  # Tamil
    "తెలుగు భాష శ్రీ",  # Telugu
    "ಕನ್ನಡ ಭಾಷೆ ಶ್ರೀ",  # Kannada
    "മലയാളം ഭാഷ ന്‍റെ",  # Malayalam
    "සිංහල භාෂාව ශ්‍රී",  # Sinhala
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ๑๒๓ กำลัง น้ำ",  # Thai
    "ພາສາລາວ ກຳລັງ",  # Lao
    "မြန်မာဘာသာ ကျွန်ုပ်",  # Burmese
    "ភាសាខ្មែរ ក្រុម",  # Khmer
    "བོད་སྐད་ ཀྵ",  # Tibetan
    "አማርኛ ቋንቋ ፩፪፫",  # Ethiopic
    "いろはにほへと チリヌルヲ ｶﾞｷﾞ 、。「引用」 株式会社㍿",  # Japanese
    "視野無限廣，窗外有藍天。简体汉字𠮷𡃁",  # Chinese
    "키스의 고유조건은 한글 ㅋㅋㅋ 각",  # Korean
    "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",  # Mongolian
    "ᏣᎳᎩ ꮳꮃꭹ ᚠᛇᚻ 𐌰𐌱𐌲 𒀀𒁀 𓂀𓃠",  # Cherokee, runes, Gothic, cuneiform, hieroglyphs
]
SPACES = [
    "", " ", "  ", "\t", "\n", "\r", "\r\n", "\n\n\n", " \n \n ", "\v\f", "   leading and trailing   ",
    "a\tb\t\tc\t \td", "line\r\nline\r\n\r\nline\rline\n\rline\n", "if x:\n    return  {'a': [1,  2]}\t# 100 %\n\n\n",
    "no\u00a0break thin\u2009space em\u2003\u2003space ideo\u3000graphic ogham\u1680 line\u2028par\u2029 nel\u0085end",
    "a" + " " * 300 + "b" + "\n" * 40 + " " * 17 + "c", " \u00a0 \u3000 \u2003", "\u200b", "\n a \r\n\tb ",
]  # fmt: skip
CHARACTERS = [
    "".join(map(chr, range(1, 256))),
    "\x00\x01\x07\x08\x1b[0m\x7f\x80\x9f\ufffd \ufeffbom\ufeff \ue000\uf8ff \uffff \U0010ffff \ufdd0",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\u00adsoft\u200e\u200f\u202aembed\u202c\u202eoverride\u202c\u2066",
    "a\u0300\u0301\u0302\u0323\u0327b e\u0301 \u0301alone q\u0307\u0323 \u1e9b\u0323 Z\u0351\u036b\u0343\u036a",
    "ﬁ ﬂ ﬀ ① ② Ⅳ ⅷ ㎏ ㏒ ½ ¼ ⅓ x² x₂ ª º ™ ℃ Å Ω K ℵ ſ ŉ ǆ ǅ Ĳ ŀ … ‥ ‼ ″ ﹏ ＡＢＣ １２３ ｟",
    "𝒳𝔸𝟘𝟙 𝐛𝑖 \U000e0001 \U000e0041\U000e007f ٣٤ ௩ Ⅻ ↉ ² ¾ 一二三 0x1F600 1e-10 1,000,000.00 007",
    "👍 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🇳🇴🇫🇷🇯🇵 ❤️ ☺︎ 1️⃣ #️⃣ 🧑🏿‍🚀🤦🏼‍♂️ 😀😀😀",
    "don't I'LL we've 'tis they’re O'Neil's 'S 'rE n''t 'd''ll ''' `` \"\"\" ‘’ “” «» ‹› „“",
    "!!!??? ... ---- ==== #### ** && || >> << $$ ~^ @user #tag https://a.b/c?d=e&f#g a_b_c __init__ C++ \\n </p>",
    "CamelCaseXMLHttp2 ALLCAPS mIxEd 3rd 2nd x1y2 v1.2.3-rc4 ünïcödé ﬅ ▁ ▁▁a a▁b _ Ġ Ċ Âł ## ##ing # #a [x] <0x0A>",
    "a" * 3000, "A" * 257, "ab" * 700, "1" * 400, "-" * 300, "é" * 500, "漢" * 400, "😀" * 100, "\u0301" * 80,
    "!?" * 200, "supercalifragilisticexpialidocious" * 12, " a" * 500, "\n\n a" * 100, ("word " * 30 + "\n") * 8,
]  # fmt: skip


def hard_texts(special_tokens: Iterable[str]) -> list[str]:
    """White space, control and combining characters, emoji, long runs, 30 scripts, composed and decomposed.

    Each of the special tokens stands at the beginning, within words, between spaces, twice in a row and cut short.
    """
    texts = [*SCRIPTS, *SPACES, *CHARACTERS]
    texts += [
        unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC") for text in (*SCRIPTS, CHARACTERS[4])
    ]
    texts += [" ".join(SCRIPTS), "".join(reversed(SCRIPTS)), "\n".join([*SCRIPTS, *SPACES, *CHARACTERS])]
    for token in special_tokens:
        texts += [
            token,
            f"{token}a",
            f"a{token}b {token} c{token}\n{token}{token} {token[:-1]} {token.upper()}",
            f" {token} ",
        ]
    return texts


def documents_to_compare(texts: Sequence[str], seed: int, first_number: int, is_first: bool) -> list[int]:
    """Indices of the documents on which the encoders are compared: one in `ONE_IN`.

    Args:
        texts: consecutive documents.
        seed, first_number: number of their part of the corpus, and of the first of them within the part.
        is_first: they are the first ones of the corpus, which are compared up to `FIRST_CHARACTERS`.
    """
    chosen = {i for i in range(len(texts)) if (seed + first_number + i) * GOLDEN_RATIO % 2**64 < 2**64 // ONE_IN}
    num_characters = 0
    for i, text in enumerate(texts if is_first else ()):
        chosen.add(i)
        num_characters += len(text)
        if num_characters > FIRST_CHARACTERS:
            break
    return sorted(chosen)
