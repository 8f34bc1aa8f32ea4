r"""Units in any spelling: ``cm``, ``\text{ cm}^2``, ``square centimeters``, ``m/s``, ``miles per hour``, ``\$5``."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache

_NAMES = (
    "mm millimeter millimetre, cm centimeter centimetre, m meter metre, km kilometer kilometre, in inch inches, ft foot feet, "
    "yd yard, mi mile, mg milligram, g gram gramme, kg kilogram kilo, lb lbs pound, oz ounce, t ton tonne, ms millisecond, "
    "s sec second, min mins minute, h hr hrs hour, day, week, month, yr year, l L liter litre, mL ml milliliter millilitre, gal gallon, "
    "N newton, J joule, W watt, kW kilowatt, V volt, Hz hertz, Pa pascal, K kelvin, A amp ampere, C coulomb, mol mole, "
    "° deg degree, rad radian, dollar USD usd, cent ¢, euro EUR, gbp GBP, yen JPY, rupee Rs INR, yuan RMB CNY, unit, point, people person, "
    "% percent pct percentage, mph kph km/h, °C celsius, °F fahrenheit, student, apple, coin, marble, book, ticket, square, time, "
    "Ω ohm, eV electronvolt, cal calorie, kcal kilocalorie, atm atmosphere, bar, torr Torr, mmHg, Å angstrom, dB decibel, rpm, "
    "ha hectare, acre, byte, bit, tesla, farad, henry, molar"
)
_UNITS = {name: group.split()[0] for group in _NAMES.split(",") for name in group.split()}
_UNITS |= {f"{name}s": unit for name, unit in _UNITS.items() if len(name) > 2 and not name.endswith("s")}
_UNITS |= {"mph": "mph", "kph": "kph", "km/h": "kph"}
_PREFIXED = {f"{prefix}{unit}" for prefix in "nμmkMG" for unit in (*"VWAJNFTΩLBM", "Hz", "Pa", "eV", "mol")}
_PREFIXED |= {"nm", "μm", "ns", "μs", "μg", "pF", "KB", "TB", "kPa", "hPa"}
_UNITS = {name: name for name in _PREFIXED} | _UNITS
#: Letters that are a unit in ``\\text``, and a variable elsewhere.
_UNITS_IN_TEXT = {"T": "tesla", "F": "farad", "H": "henry", "M": "molar", "B": "byte"}
_RATES = {"mph": Counter({"mi": 1, "h": -1}), "kph": Counter({"km": 1, "h": -1})}
_CURRENCIES = {
    "$": "dollar",
    "€": "euro",
    "£": "gbp",
    "¥": "yen",
    "₹": "rupee",
    "USD": "dollar",
    "EUR": "euro",
    "GBP": "gbp",
    "JPY": "yen",
    "INR": "rupee",
}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words behind a number that are no unit, so that `5\text{ or more}` is not 5.
_NO_UNIT_NAMES = (
    "a an and or not no nor to than more less most least fewer if when then is are was be of in at by for with without between mod "
    "modulo base remainder times plus minus over negative positive about approximately exactly only except otherwise where but "
    "am pm dozen first second-to-last only infinity wrong right correct incorrect true false yes none maybe either neither both the this "
    "that any all each every per cent"
)
_NO_UNITS = {*_NO_UNIT_NAMES.split(), *_SCALES}
_CURRENCY = re.compile(r"^([-+]?) ?(?:(?:US ?)?\\?(\$|€|£|¥|₹)|(USD|EUR|GBP|JPY|INR)) ?(?=[\d.\\(])")
_CURRENCY_BEHIND = re.compile(r"(?<=[\d})]) ?(\\?\$|€|£|¥|₹)$")
_SCALE = re.compile(r" ?(?:\\text\{ ?)?\b(hundred|thousand|million|billion|trillion)s?(?: ?\})?$")
_MICRO = re.compile(r"\\mu ?\\text\{ ?|\\text\{ ?\\mu ?")
_OHM = re.compile(
    r"(\\text\{ ?[kMGm]?)\\Omega(?= ?\})|(?<=\d )([kMGm]?)\\Omega$|(?<=\d) ?\\text\{ ?([kMGm]) ?\} ?\\Omega$"
)
_PER = re.compile(r"\\frac ?\{ ?\\text\{([^{}]*)\} ?\}\{ ?\\text\{([^{}]*)\} ?(\^ ?\{?\d\}?)? ?\}$")
_START = re.compile(r"\\text\{|(?<![\\A-Za-zμ{])[A-Za-zμΩÅ]|[%°]")
_WORD_BEFORE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,} *$|\\text\{[^{}]*\} *$")
_ANGLE_OF_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)[^ +-]* ?\S*$")
_LONGEST = 96  # characters
#: Letters without a number or ``\\text`` that are a unit, and in formulas more often a product or a variable.
_PRODUCTS = ("mg", "ms", "ml", "t")
_LENGTHS = ("mm", "cm", "m", "km", "in", "ft", "yd", "mi", "unit")
_BARE_PRODUCTS = (("N", "m"), ("W", "h"), ("kW", "h"))
_NUMBER_COMMAND = re.compile(r"\\(?:pi|sqrt|d?frac|cdot|times|overline)(?![A-Za-z])")
_BRACKETED = re.compile(r"\([^(){}]*\)|\{[^(){}]*\}")
_MOST_NESTING = 8
_LETTERS_BEHIND = re.compile(r"(?<=\d)(?:mg|ms|ml|m ?\^ ?(?:[23]|\{[23]\}))$")
_LETTERS = re.compile(r"(?<=\d) ?([A-Za-zμΩ]{1,2}|[A-Za-zμ][A-Za-z]{2})$")
_PART = re.compile(
    r" *(?:(?P<per>/|per\b)|(?P<times>\\cdot|\*|·|-(?=[A-Za-z]))|\^ ?\{? ?(?P<power>-?\d)(?: ?\})?|(?P<word>°[CF]?(?![A-Za-z])|%|[A-Za-z¢μΩÅ]+))\.?"
)
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}


def split_currency(text: str) -> tuple[str, str | None]:
    """Return a text without a currency sign at its beginning or end, and the currency; None if there is no sign."""
    found = _CURRENCY.match(text)
    if found:
        return found[1] + text[found.end() :], _CURRENCIES[found[2] or found[3]]
    found = _CURRENCY_BEHIND.search(text)
    return (text[: found.start()], _CURRENCIES[found[1][-1]]) if found else (text, None)


@lru_cache(maxsize=4096)
def split_unit(text: str) -> tuple[str, str | None]:
    r"""Split a normalized text into a value and a unit.

    Returns:
        The text without its unit, and the unit in one spelling, such as ``m s^-2``; None if it has none. A letter that touches
        its number, as in ``5m`` or ``4t^2``, may be a variable and stays in the text, as does one behind a formula or a sum
        (``\pi r^2 h``, ``2 + 3 m``).
    """
    text, unit = split_currency(text)
    if unit is not None:
        return text, unit
    text = _OHM.sub(_in_ohms, _MICRO.sub(r"\\text{μ", text))
    rate = _PER.search(text)
    if rate:
        text = f"{text[: rate.start()]}\\text{{ {rate[1]} per {rate[2]}}}{''}"
        text = text if not rate[3] else f"{text[:-1]}{rate[3].replace('{', '').replace('}', '')}}}"
    for start in _START.finditer(text, max(0, len(text) - _LONGEST)):
        before = text[: start.start()]
        if (
            not before.strip()
            or (text[start.start()] == "°" and _ANGLE_OF_FUNCTION.search(before))
            or _WORD_BEFORE.search(before)
            or text.count("{", 0, start.start()) != text.count("}", 0, start.start())
        ):
            continue
        behind = "number" if re.search(r"\d $", before) else "" if before[-1] in " }" else "touching"
        found = _read(text[start.start() :], behind, amount=_is_amount(before))
        if found is not None:
            return before.rstrip(), found
    return text, None


def _in_ohms(found: re.Match[str]) -> str:
    return f"{found[1]}Ω" if found[1] else rf"\text{{{found[2] or found[3] or ''}Ω}}"


def split_scale(text: str) -> tuple[str, Fraction]:
    """Return a text without a word such as ``million`` at its end, and the number that the word stands for; 1 without one."""
    found = _SCALE.search(text)
    return (text[: found.start()], Fraction(_SCALES[found[1]])) if found and found.start() else (text, Fraction(1))


def without_letters(text: str) -> str:
    """Return ``25m^2`` or ``3mg`` without the letters, which are a unit if the other answer is a plain number."""
    return _LETTERS_BEHIND.sub("", text)


def letter_unit(text: str) -> tuple[str, str | None]:
    """Return a text without a unit of one or two letters behind its number, as in ``5m`` or ``5 nm``, and that unit; None without one.

    Such letters may be variables, unless the other answer has the same unit.
    """
    found = _LETTERS.search(text)
    unit = (_UNITS.get(found[1]) or _UNITS_IN_TEXT.get(found[1])) if found else None
    return (text[: found.start()], unit) if found and unit else (text, None)


def _is_amount(text: str) -> bool:
    """Return whether a text is one number: it has no variables, and is no sum outside brackets."""
    text = _NUMBER_COMMAND.sub(" ", text).strip()
    if any(map(str.isalpha, text)):
        return False
    for _ in range(_MOST_NESTING):
        text = _BRACKETED.sub("", text)
    return "+" not in text[1:] and "-" not in text[1:] and text[-1:] not in ("*", "/")


def _read(text: str, behind: str, amount: bool) -> str | None:
    """Return the unit that a whole text denotes, in one spelling; None if it is no unit.

    Args:
        text: such as ``\\text{ square miles per hour}``.
        behind: `touching` if it follows its number without a space, `number` if with one and the number is a decimal.
        amount: what it follows is one number, without variables.
    """
    written, touching = text.startswith("\\text{"), behind == "touching"
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).replace("(", "").replace(")", "").strip()
    powers: Counter[str] = Counter()
    unknown: list[str] = []
    words: list[str] = []
    sign, coming, last, at, beside = 1, 1, "", 0, False
    while at < len(plain):
        part = _PART.match(plain, at)
        if part is None:
            return None
        at = part.end()
        if part["per"]:
            sign, last, beside = -1, "", False
        elif part["times"]:
            beside = False
        elif part["power"]:
            if not last or not (written or sign < 0 or last in _LENGTHS):
                return None
            powers[last] *= int(part["power"])
        else:
            word = part["word"]
            if word in _POWERS and not (word == "square" and not plain[at:].strip()):
                if word.endswith("d") and last:
                    powers[last] *= _POWERS[word]
                else:
                    coming = _POWERS[word]
                continue
            name = _UNITS.get(word) or _UNITS.get(word.lower() if len(word) > 3 else word)
            name = name or (_UNITS_IN_TEXT.get(word) if written else None)
            if name is None:
                if not written or word.lower() in _NO_UNITS or len(word) < 2:
                    return None
                name = word.lower().removesuffix("s") if len(word) > 3 else word  # mW is not MW
                unknown.append(name)
            if beside and not written and (last, name) not in _BARE_PRODUCTS:
                return None
            words.append(word)
            for part_name, power in _RATES.get(name, {name: 1}).items():
                powers[part_name] += sign * coming * power
            last, coming, beside = name, 1, True
    if not powers or len(unknown) > 3:
        return None
    if not written and words == [words[0]] and (words[0] in _PRODUCTS if touching else words[0] == "t"):
        return None
    single = any(len(word) == 1 and word.isalpha() for word in words)
    if not written and single and (not amount or (touching and len(words) == 1)):
        return None
    if (
        not written
        and behind != "number"
        and any(word in _PREFIXED and len(word) == 2 and word.isascii() for word in words)
    ):
        return None
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()))
