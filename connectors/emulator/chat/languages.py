"""Languages of transcription, and a guess of the language of a text."""

from connectors.emulator.validation import refuse

_LISTED = (
    "af:afrikaans am:amharic ar:arabic as:assamese az:azerbaijani ba:bashkir be:belarusian bg:bulgarian bn:bengali "
    "bo:tibetan br:breton bs:bosnian ca:catalan cs:czech cy:welsh da:danish de:german el:greek en:english "
    "es:spanish et:estonian eu:basque fa:persian fi:finnish fo:faroese fr:french gl:galician gu:gujarati ha:hausa "
    "he:hebrew hi:hindi hr:croatian ht:haitian hu:hungarian hy:armenian id:indonesian is:icelandic it:italian "
    "ja:japanese jv:javanese jw:javanese ka:georgian kk:kazakh km:khmer kn:kannada ko:korean la:latin "
    "lb:luxembourgish ln:lingala lo:lao lt:lithuanian lv:latvian mg:malagasy mi:maori mk:macedonian ml:malayalam "
    "mn:mongolian mr:marathi ms:malay mt:maltese my:myanmar ne:nepali nl:dutch nn:nynorsk no:norwegian oc:occitan "
    "pa:punjabi pl:polish ps:pashto pt:portuguese ro:romanian ru:russian sa:sanskrit sd:sindhi si:sinhala "
    "sk:slovak sl:slovenian sn:shona so:somali sq:albanian sr:serbian su:sundanese sv:swedish sw:swahili ta:tamil "
    "te:telugu tg:tajik th:thai tk:turkmen tl:tagalog tr:turkish tt:tatar uk:ukrainian ur:urdu uz:uzbek "
    "vi:vietnamese yi:yiddish yo:yoruba yue:cantonese zh:chinese haw:hawaiian"
)

NAMES = dict(pair.split(":") for pair in _LISTED.split())
"""ISO 639-1 code (three letters if there is no two-letter code) -> English name, as in verbose_json."""

_SCRIPTS = (
    ("\u3040", "\u30ff", "ja"),
    ("\uac00", "\ud7a3", "ko"),
    ("\u4e00", "\u9fff", "zh"),
    ("\u0400", "\u04ff", "ru"),
    ("\u0600", "\u06ff", "ar"),
    ("\u0590", "\u05ff", "he"),
    ("\u0370", "\u03ff", "el"),
    ("\u0900", "\u097f", "hi"),
    ("\u0e00", "\u0e7f", "th"),
)
"""(first character, last character, code of the most spoken language) of a script."""


def check_language(value: str, param: str) -> str:
    """The code in lower case; ApiError if it is unknown."""
    if value.lower() not in NAMES:
        message = f"Invalid language '{value}'. Language parameter must be specified in ISO-639-1 format."
        raise refuse(param, message, "invalid_language_format")
    return value.lower()


def language_of(text: str) -> str:
    """The language code of the script of most letters; English for Latin letters."""
    letters = [character for character in text if character.isalpha()]
    counts = {code: sum(first <= letter <= last for letter in letters) for first, last, code in _SCRIPTS}
    # Japanese also uses Chinese characters, but no other language uses kana.
    if counts["ja"]:
        counts["ja"] += counts["zh"]
    top = max(counts, key=lambda code: counts[code])
    return top if 2 * counts[top] > len(letters) else "en"
