"""The fault table: codes, types and words of an error reply decide whose fault it is, before its status does."""

import re
from collections.abc import Callable, Collection, Iterable
from functools import cached_property, lru_cache

from msgspec import Struct

from connectors.error_classes import ErrorClass

_MAX_WORDS_CHARACTERS = 600
"""A fault is named at the beginning of a message; what follows is often the row's own text."""

_QUOTATION = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|`[^`]*`|(?<!\w)'[^']*'(?!\w)|(?<!\w)‘[^’]*’(?!\w)")
_NUMBER = re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[a-z])[\w-]{8,}|\d+(?:[.,:]\d+)*", re.I)
"""Numbers, and the ids of requests that some gateways append to every message."""


class Words:
    """Alternatives of a regular expression, compiled at their first use: most runs meet no fault."""

    def __init__(self, *alternatives: str) -> None:
        self._source = "|".join(alternatives)

    @cached_property
    def search(self) -> Callable[[str], re.Match[str] | None]:
        """Return the first match within a text; None without one."""
        return re.compile(self._source, re.I).search

    @cached_property
    def fullmatch(self) -> Callable[[str], re.Match[str] | None]:
        """Return the match of a whole text; None without one."""
        return re.compile(self._source, re.I).fullmatch


class FaultRule(Struct, frozen=True):
    """One line of the table: it applies if a code fits at `code_statuses`, or a word at `statuses`."""

    error_class: ErrorClass
    codes: Words | None = None
    """Of a whole code or type, in lower case."""
    code_statuses: Collection[int] = range(200, 600)
    words: Words | None = None
    """Within the message, without its quotations."""
    statuses: Collection[int] = range(200, 600)
    unless: Words | None = None
    """Words that show another fault: then the rule's own words decide nothing."""

    def applies(self, status: int, codes: Iterable[str], message: str) -> bool:
        """Return whether the reply has this fault; `codes` in lower case, `message` without quotations."""
        if self.codes is not None and status in self.code_statuses and any(map(self.codes.fullmatch, codes)):
            return True
        if self.words is None or status not in self.statuses or not self.words.search(message):
            return False
        return self.unless is None or not self.unless.search(message)


_OF_ACCOUNT = Words(
    # Somebody other than the row is refused. A mere mention, as in "Team: t, API key ID: k", is no subject.
    r"\b(account|organi[sz]ation|workspace|project|team|subscription|tenant|access|(api )?keys?|user|ip( address)?)"
    r"('s)?\b[^.:]{0,60}\b(flagged|violat\w*|suspend\w*|terminat\w*|deactivat\w*|disabled?|banned|blocked|block"
    r"|restrict\w*"
    r"|forbid\w*|denied|deny|denies|prohibit\w*|not (allow|permit|authori[sz])\w*|revoked|closed|locked|expired)",
    r"\b(suspend|terminat|deactivat|disabl|ban|block|restrict)\w*\b[^.]{0,30}\b(your|this|the) "
    r"(account|organi[sz]ation|workspace|project|team|api key|access)\b",
    r"\b(country|region|territory|location)\b[^.]{0,40}\b(not|un)\s?(supported|available|allowed)",
    r"\b(data|retention|privacy|ip|network|firewall|access|security) (control )?polic(y|ies)\b",
)
_PER_MINUTE = Words(
    r"\bper[ _-]?(second|minute|min)\b", r"/ ?min\b", r"_per_", r"PerMinute", r"\b[rt]p[ms]\b",
    r"rate[ -]?limit(?!error)", r"too many requests",
    r"concurren(t|cy)", r"throttl", r"quota metric",
)  # fmt: skip
_TOO_LARGE = Words(
    r"request (is |was )?too large",
    r"(input|prompt|message|content|request|body|payload)\b[^.]{0,40}\b(too (large|long)|larger than|longer than)\b",
    r"maximum context length",
    r"context[ _](length|window|size)\b[^.]{0,60}(exceed|limit|maximum)|exceeds?\b[^.]{0,60}context[ _](length"
    r"|window|size)",
    r"exceeds? (the )?(maximum|max)\b[^.]{0,40}\b(token|size|length|input|character|byte)",
    r"(tokens?|input|output)\b[^.]{0,30} must be reduced",
    r"\b(maximum|max) (content|request|body|payload|file|upload) size\b[^.]{0,40}\bexceed",
    r"\b(required|not available) for (the )?long[ -]context\b",
)
_CANNOT_SERVE = Words(
    r"\b(image|audio|video|vision|tool|function|multimodal)s?\b( \w+){0,2} (is|are) not supported\b",
    r"\b(parse|compile|convert)\w* (the |a )?(json )?(grammar|schema)\b",
    r"\b(response_format|json_schema|json schema|structured outputs?|grammars?|encoding_format)\b[^.]{0,60}"
    r"\b(not |un)(supported|implemented|available|known)\b",
    r"\bunsupported (param|feature|field)",
)
"""What a server cannot do for any request, although it calls that its own failure."""
_NOT_FINITE = Words(r"\bunsupported value: [+-]?(nan|inf)", r"\bout of range float values are not json compliant")
_NO_MODEL = Words(
    r"\bmodels?\b(?![^.]{0,40}\b(file|image|output|response|tool|function)s? )[^.]{0,100}?"
    r"\b(not (be )?found|does ?n[o']t exist|not exist|no longer (available|supported)|decommissioned"
    r"|(is|was|been) (deprecated|retired|shut down|removed)|not (currently |been )?(deployed|loaded|installed|served)"
    r"|is not (a )?(valid|available|recogni[sz]ed)|identifier is invalid|not supported for)",
    r"\b(unknown|invalid|no such|unrecogni[sz]ed|unsupported) model( name| id| identifier)?\b(?! (output"
    r"|response|param))",
    r"\bdeployment\b[^.]{0,80}\b(not (be )?found|does ?n[o']t exist|not exist)",
    r"\bno (allowed |available )?(endpoints?|providers?|channels?|deployments?)\b[^.]{0,40}"
    r"\b(found|available|support|match)\b[^.]{0,60}",
    r"operation does not work with the specified model",
    r"\bnot a valid model\b",
    r"failed to load model",
    r"(requested|specified) (model|entity)\b[^.]{0,20}\bnot found",
    r"\bno models? (is |are |has been |have been )?(currently )?loaded\b",
    r"\bmodel\b[^.]{0,40}\b(is )?only supported in\b|\bon-demand throughput is(n|\b)",
    r"\bdoes not support (the )?(chat|embeddings?|generate|completions?)( api| endpoint)?\b(?! (\w+ )?(format|param))",
    r"\brequires terms acceptance\b|\bend of (its )?life\b",
    r"模型不存在|无可用渠道",
)
_NO_PATH = Words(
    r"^file not found\W*$",  # llama.cpp's server, of a path
    r"\bunexpected endpoint\b|\binvalid url\b|\bno route matched\b",
    r"\bapi[- ]?version\b[^.]{0,40}\b(not supported|invalid|required|missing|unsupported)\b"
    r"|\b(missing|invalid|unsupported)\b[^.]{0,40}\bapi[- ]?version\b",
)
_OF_ROW = Words(
    r"\b(file|image|picture|audio|video|document|previous[_ ]response(_id)?|response|conversation|item|vector[_ ]store"
    r"|container|message|thread|attachment|media)s?\b"
)
_CLIENT_ERRORS = (200, *range(400, 429), *range(430, 500))

RULES: tuple[FaultRule, ...] = (
    # A row whose content is refused.
    FaultRule(
        "content_filter",
        codes=Words(
            r".*(content[_ ]?(filter|policy|management|moderation|violation|blocked)|responsible_?ai"
            r"|safety_?(block|check|viol"
            r"|system|filter)|data_?inspection|prohibited_content|moderation_?(block|fail|viol|flag)|content_unsafe).*",
            r"sensitive_?(content|words?).*",
            r"(input|output|prompt)_?(text|image|audio|video)?_?(sensitive|risk|unsafe|flagged|blocked).*",
            r"recitation|blocklist|spii|safety|invalid_prompt_policy|bio_policy|guardrail_?(intervened"
            r"|violation|raised).*|1301",
            r"moderation|content_flagged|flagged|image_safety|cyber_policy.*|.*censorship.*",
        ),
        words=Words(
            r"content[ _-]?(filter|management|moderation|violation|safety)",
            r"content[ _-]?polic(y|ies)",
            r"content guidelines?",
            r"\b(usage|use|safety|acceptable use|community) (guidelines|polic(y|ies))\b",
            r"\bsafety (system|check|filter|setting|reason|classifier|guideline)",
            r"SAFETY_CHECK",
            r"\bmoderat(ion|ed)\b",
            r"\b(was|were|been|is|are|got|input|prompt) (potentially |possibly )?flagged\b",
            r"\bflagged (by|for|as)\b",
            r"\b(inappropriate|offensive|harmful|unsafe|sensitive|prohibited|explicit|objectionable|disallowed|nsfw) "
            r"(or \w+ )?(content|words?|text|material|information|topics?|language|images?)\b",
            r"\b(considered|deemed) (to be )?(high[ -]risk|unsafe|harmful|inappropriate|sensitive)\b",
            r"\bguardrails?\b[^.]{0,60}\b(interven|violat|block|reject|fail|rais|trigger|flag|detect|refus|stop)",
            r"\b(interven|violat|block|reject|fail|trigger|flag|refus|stop)\w*\b[^.]{0,40}\bguardrails?\b",
            r"\bcontent\b[^.]{0,40}\b(is|was|has been) (blocked|rejected|refused)\b",
            r"\bnew_sensitive\b",
            r"jail ?break",
            r"prompt injection",
            r"\bPROHIBITED_CONTENT\b",
            r"responsible ai",
            r"不安全|敏感|违规内容|不合规",
        ),
        statuses=(200, 400, 403, 406, 422, 446, 451),
        unless=_OF_ACCOUNT,
    ),
    # An answer that the provider has cut off and dropped.
    FaultRule(
        "length",
        words=Words(r"\b(max_tokens|max_completion_tokens|max_output_tokens|output limit)\b[^.]{0,40}\bwas reached\b"),
        statuses=(200, 400, 422),
    ),
    # A request that is too large for ever. `Limit 30000, Requested 61337` is compared in `_never_fits`.
    FaultRule(
        "bad_request",
        codes=Words(
            r"context_length_exceeded|exceed_context_size_error|string_above_max_length|request_too_large"
            r"|.*contextwindow.*"
        ),
        code_statuses=(413, 429, *range(500, 600)),
        words=_TOO_LARGE,
        statuses=(413, 429, *range(500, 600)),
        unless=Words(r"too large to (be )?(queue|schedule)", r"tokens? has exceeded"),
    ),
    # A vector with a number that JSON cannot hold: the same text would have it again.
    FaultRule("bad_request", words=_NOT_FINITE, statuses=(500,)),
    # What a server cannot do.
    FaultRule("bad_request", words=_CANNOT_SERVE, statuses=(500, 501)),
    # A speed limit under the name of a quota, or with another status.
    FaultRule(
        "rate_limit",
        codes=Words(
            r"throttling\..*|throttling(exception|_error)?|requestlimitexceeded|(user)?rate_?limit_?(exceeded|reached)"
        ),
        code_statuses=(200, 400, 403, 429, 503),
        words=Words(
            r"\btoo many (requests|tokens)\b[^.]{0,40}\b(wait|try again|slow down)\b",
            r"\bquota exceeded for (quota )?metric\b[^.]{0,200}\bper (minute|second)\b",
        ),
        statuses=(200, 400, 403),
    ),
    # A limit of a month under the name of a rate limit.
    FaultRule(
        "quota",
        words=Words(
            r"\blimited to [\d,]+ [^.]{0,30}(/|per|a) ?(month|week)\b",
            r"\bmonthly\b[^.]{0,40}\b(reached|exceeded|used|exhausted)\b",
            r"\b(reached|exceeded|used|exhausted)\b[^.]{0,40}\bmonthly\b",
        ),
        statuses=(402, 403, 429),
    ),
    # Credit, billing and quota of the account.
    FaultRule(
        "quota",
        codes=Words(
            r"insufficient_?(user_?|account_?)?(quota|funds?|balance|credits?)(_error)?|.*billing_?(hard_?limit"
            r"|not_?active|error|limit).*",
            r"billing_?error|quota_?exceeded(_error)?|exceeded_current_quota(_error)?|.*credit_?balance.*"
            r"|(out_of|no|not_enough)_credits?",
            r"(credits?|balance|funds?)_?(exhausted|depleted|insufficient|too_low)"
            r"|(max_?)?budget_?exceeded(_error)?|payment_?required(_error)?",
            r"arrearage|account_?overdue(_?error)?|spend(ing)?_?limit.*|.*freetieronly|negative_?balance"
            r"|.*insufficientbalance.*|1113",
            r"monthly_(limit|quota|budget).*|usage_limit_(reached|exceeded)|hard_limit_reached"
            r"|(set_?|inference_?)limit_?exceeded|inference_?limit.*|over_?quota|service_?quota_?exceeded.*",
        ),
        code_statuses=(200, *range(400, 500), 500, 502, 503),
    ),
    FaultRule(
        "quota",
        words=Words(
            r"credit balance",
            r"\binsufficient[ _](\w+ )?(credits?|balance|funds?|quota)\b",
            r"\b(out of|run out of|no|not enough|enough|add|purchase|buy|more|exhausted (your|all|the)"
            r"|depleted (your|the)) "
            r"(remaining |available |prepaid |prepayment |more )?(credits?|funds|balance)\b",
            r"\b(credits?|balance|funds)\b[^.]{0,30}\b(exhausted|depleted|too low|used up|negative|insufficient"
            r"|ran out)",
            r"\bexceeded (your|the|its|their)? ?(\w+ ){0,3}(quota|budget|credits?|spend\w*|allowance|usage limits?)\b",
            r"\bquota\b[^.]{0,30}\b(exceeded|exhausted|reached|used up)\b|\bout of (\w+ ){0,3}quota\b",
            r"\bused up (your|the|its|all)\b[^.]{0,30}\b(allocation|allowance|credits?|points|tokens|quota)\b",
            r"\b(do|does)(n't| not)( yet)? have (any|enough|sufficient) (\w+ )?(credits?|funds|balance|quota)\b",
            r"\bkey limit exceeded\b",
            r"\bbilling\b",
            r"\bpayment\b",
            r"\btop[- ]?up\b",
            r"\brecharge\b",
            r"\b(spend(ing)?|hard|usage|budget) (limits?|cap)\b",
            r"\bbudget\b[^.]{0,20}\bexceeded",
            r"\barrears?\b|\boverdue\b",
            r"余额不足|欠费|额度不足|额度已?用尽",
            r"free (tier|trial|quota)\b[^.]{0,40}\b(exhausted|ended|expired|used up|over)\b",
        ),
        statuses=(200, 400, 402, 403, 412, 429),
        unless=_PER_MINUTE,
    ),
    # The key, its permission, its region.
    FaultRule(
        "access_denied",
        codes=Words(
            r"invalid_api_?key|api_?key_?(invalid|expired|revoked|disabled)(_error)?|authentication_?(error"
            r"|failed)|permission_?(error|denied)",
            r"unauthori[sz]ed|forbidden|access_?denied|unsupported_country_region_territory"
            r"|account_(deactivated|suspended|disabled)",
            r"invalid_organization|organization_(deactivated|disabled|restricted)|ip_not_authorized|invalid_token"
            r"|expired_token|token_expired",
        ),
        code_statuses=(200, *range(400, 429)),
        words=Words(
            r"\b(incorrect|invalid|missing|expired|revoked|no) (api|authentication|access|bearer) ?(key|token)",
            r"\bapi key\b[^.]{0,30}\b(not valid|invalid|expired|revoked|missing|required|not found)",
            r"\b(country|region|territory|location)\b[^.]{0,40}\b(not|un)\s?(supported|available|allowed)",
        ),
        statuses=(200, 400, 404, 405, 410, 422),
    ),
    FaultRule(
        "access_denied",
        words=Words(
            r"\b(your|this|the) (account|organi[sz]ation|workspace|project|api key)\b[^.]{0,40}\b(has been|is|was) "
            r"(suspended|restricted|disabled|deactivated|locked|terminated|banned|blocked)\b",
            r"^(account|organi[sz]ation) (has been|is) (suspended|restricted|disabled|deactivated|locked|blocked)\b",
        ),
        statuses=(200, 400, 412, 429),
    ),
    # The model's own slip, and the server's lack of capacity.
    FaultRule(
        "server",
        codes=Words(
            r"json_validate_failed|tool_use_failed|output_parse_failed|tool_call_(parse|validation)_failed"
            r"|.*capacity_?(exceeded|error)|capacity",
            r"(.*_)?overloaded(_error)?|server_error|internal_(server_)?error|service_?unavailable(_error)?"
            r"|slow_down|resource_unavailable",
            r"model_(overloaded|not_ready|loading|busy)|modelnotready(exception)?|server_(busy|overloaded)"
            r"|try_again(_later)?|upstream_error",
            r"modelerrorexception|model_error|failed_?dependency|unavailable|too_early|lock(ed)?",
        ),
        code_statuses=(200, 400, *range(404, 413), *range(414, 429), *range(430, 500)),
        words=Words(
            r"\bcapacity (is |was |has been )?(exceeded|reached|exhausted|full)\b|\b(at|over|no|insufficient"
            r"|limited|out of) capacity\b",
            r"\boverload(ed|ing)?\b|\btemporarily unavailable\b|\b(server|model|engine|service) is (currently "
            r"|too )?(busy|loading)\b",
            r"\btry(ing)? again later\b|\bplease (try again|retry your request)\b(?! with)|\bstill (loading"
            r"|starting)\b",
            r"\bfailed to (generate|produce) (a )?(valid )?json\b|\bfailed to (call|parse) (a |the )?(function|tool)\b",
            r"\bmodel (generated|produced|returned|output) (an? )?(invalid|malformed)\b",
            r"\b(model|engine|worker|runner) (process )?has crashed\b|^model (was )?unloaded\b",
            r"\b(request|generation) (is|was|has been) (aborted|preempted|interrupted)\b",
        ),
        statuses=(400, 404, 405, *range(411, 413), *range(415, 422), *range(423, 429), *range(430, 500)),
        unless=Words(r"\b(payment|billing|different)\b", r"\binvalid (value|type|param|request)"),
    ),
    # The model or the deployment does not exist.
    FaultRule(
        "setup",
        codes=Words(
            r"model_?not_?(found|exist\w*|available|supported|deployed)(_error)?|deployment_?not_?found"
            r"|(invalid|unknown|unsupported)_model(_error|_id)?",
            r"model_(decommissioned|deprecated|retired|removed)|unknown_url|operationnotsupported"
            r"|invalid_deployment|engine_not_found|model_terms_required|model_?not_?open",
        ),
        code_statuses=(200, 400, *range(404, 429), 503),
        words=_NO_MODEL,
        statuses=(200, 400, 404, 405, 410, 422, 501),
    ),
    # The path does not exist, or its version.
    FaultRule("setup", words=_NO_PATH, statuses=(200, 400, 404, 405)),
)
"""The first rule that applies decides; the status is the fallback (`CLASS_BY_STATUS`)."""

CLASS_BY_STATUS: dict[int, ErrorClass] = {
    401: "access_denied",
    402: "quota",
    403: "access_denied",
    404: "setup",
    405: "setup",
    408: "timeout",
    409: "server",
    410: "setup",
    424: "server",
    425: "server",
    429: "rate_limit",
    498: "server",
    499: "server",
}
"""Any other 4xx is bad_request; a status from 500 on, and a 200 with an unknown error, is server."""

_TRANSIENT_BY_STATUS: frozenset[ErrorClass] = frozenset({"timeout", "server"})
_LIMIT_AND_REQUESTED = re.compile(r"\blimit:? *([\d,]+)\b.{0,80}?\brequested:? *([\d,]+)", re.I | re.S)


def fault_class(
    status: int,
    codes: Collection[str],
    message: str,
    *,
    param: str | None = None,
    has_error_object: bool = True,
    should_retry: str | None = None,
) -> ErrorClass:
    """Return whose fault an error reply is.

    `codes`: its codes, types and reasons, inner ones included. `has_error_object`: False for a page of HTML and the
    like, whose words come from no API. `should_retry`: the header x-should-retry.
    """
    lower = [code.lower() for code in codes]
    plain = without_quotations(message[:_MAX_WORDS_CHARACTERS]) if has_error_object else ""
    if _never_fits(status, plain):
        return "bad_request"
    for rule in RULES:
        if rule.applies(status, lower, plain):
            return rule.error_class
    if param == "model" and status in (400, 404, 422) and _NO_MODEL.search(f"model {plain}"):
        return "setup"
    default: ErrorClass = CLASS_BY_STATUS.get(status, "bad_request" if 300 <= status < 500 else "server")
    if default == "setup" and has_error_object and _OF_ROW.search(" ".join((*lower, param or "", plain))):
        # A file, an earlier response and the like that one row names.
        default = "bad_request"
    # OpenAI states whether the same request can succeed later; that overrides the status.
    if should_retry == "true" and default == "bad_request":
        return "server"
    if should_retry == "false" and default in _TRANSIENT_BY_STATUS:
        return "bad_request"
    return default


def names_model(codes: Iterable[str | None], message: str, param: str | None) -> bool:
    """Return whether a `setup` fault concerns the model or its deployment; else the path does not exist."""
    named = [code.lower() for code in codes if code]
    if param == "model" or any("model" in code or "deployment" in code for code in named):
        return True
    return re.search(r"\b(models?|deployment)\b", message, re.I) is not None or _NO_MODEL.search(message) is not None


@lru_cache(maxsize=1024)
def masked_words(message: str) -> str:
    """Return the message without what differs from row to row: quotations and numbers."""
    return _NUMBER.sub("#", _QUOTATION.sub("…", message))


def without_quotations(message: str) -> str:
    """Return the message without quotations: a row's text quoted in it decides nothing."""
    return _QUOTATION.sub(" … ", message)


def _never_fits(status: int, message: str) -> bool:
    """Return whether one request asks for more than a whole limit."""
    if status not in (413, 429):
        return False
    found = _LIMIT_AND_REQUESTED.search(message)
    if found is None:
        return False
    limit, requested = (int(number.replace(",", "") or 0) for number in found.groups())
    return requested > limit > 0
