"""The kinds of field that headers are made of, as patterns; header.py says in which order they are tried.

Each pattern is anchored where it is tried and bounded in length, with no repetition inside a repetition, so that no
line can make it slow. They were written from what loggers share, not one for each format.
"""

import re
from typing import Final

_MON: Final = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY: Final = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_ZONE: Final = r"(?:\s?(?:Z|[+-]\d\d:?\d\d)\b|\s(?:UTC|GMT|CES?T|[ECMP][SD]T))?"
_TIME: Final = (
    rf"(?P<iso>\d{{4}}[-/.]\d\d[-/.]\d\d(?:,?[T _:-]\s?\d\d[:.]\d\d[:.]\d\d(?:[.,:]\d{{1,9}})?{_ZONE})?)"
    r"|(?P<compact>20\d{6}[-T ](?:\d\d:?\d\d:?\d\d|\d{1,2}:\d{1,2}:\d{1,2})(?:[:.,]\d{1,6})?)"
    rf"|(?P<syslog>(?:{_DAY},? )?{_MON} +\d{{1,2}}(?: \d{{4}})?,? \d\d:\d\d:\d\d(?:\.\d+)?(?: \d{{4}})?)"
    rf"|(?P<clf>(?:{_DAY}, )?\d{{1,2}}[/ -]{_MON}[/ -]\d{{4}}[: ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: [+-]\d{{4}})?)"
    r"|(?P<short>\d\d[-/.]\d\d(?:[-/.]\d\d(?:\d\d)?)?,? \d\d:\d\d:\d\d(?:[.,]\d+)?)"
    r"|(?P<klog>[IWEFD]\d{4} \d\d:\d\d:\d\d\.\d+)"
    r"|(?P<digits>\d{6} \d{6})"
    r"|(?P<epoch>1\d{9}(?:\d{3}|\.\d+)?)"
    r"|(?P<clock>\d\d:\d\d:\d\d(?:[.,]\d+)?|\d{1,2}:\d\d[AP]M)"
    r"|(?P<uptime>\[ *\d+\.\d{6}\])"
)
TIME_AT = re.compile(rf"(?:<\d{{1,3}}>(?:1 )?|- |[A-Z], )?[\[(]?(?:{_TIME})(?![\w:])")
# A stamp deeper in the line: after one to five words that look like fields. The words themselves are checked below.
TIME_DEEP = re.compile(rf"(?:(?<=[ \[])(?:{_TIME})(?![\w.:/-]))")
TIME_NEXT = re.compile(rf"(?:(?=\S*\d)[\w./:#@-]+ )?(?:{_TIME})(?![\w:])")
PROSE: Final = frozenset(
    "a an and as at before by for from had has have if in is it job of on or since started than that the this time to "
    "until was were when will with".split()
)
SKIP = re.compile(r"[\s|,:\]\-]*")
SKIPPED: Final = frozenset(" \t|,:]-")
_LEVELS: Final = (
    r"EMERGENCY|EMERG|ALERT|CRITICAL|CRIT|FATAL|PANIC|SEVERE|ERROR|ERR|WARNING|WARN|WRN|NOTICE|INFORMATION|INFO|INF"
    r"|CONFIG|LOG|STATEMENT|DETAIL|HINT|DEBUG\d?|DBG|DBUG|FINEST|FINER|FINE|VERBOSE|TRACE|TRC|FTL"
)
LEVEL_WORDS: Final = frozenset(_LEVELS.replace("\\d?", "").split("|"))
PRI_LEVELS: Final = ("EMERG", "ALERT", "CRIT", "ERR", "WARNING", "NOTICE", "INFO", "DEBUG")
LEVEL_UPPER = re.compile(rf"[\[(<*]?\s?(?P<level>{_LEVELS})\s?(?:[\])>*]|(?=[\s:|,/\-]))(?!\s*=)")
LEVEL_ANY = re.compile(
    rf"(?:\[\s?(?P<b>{_LEVELS}|EROR|FAIL)\s?\]|(?P<c>{_LEVELS}|FAIL)(?=:|,|\s?\||\s{{2,}}|/[A-Z]))", re.IGNORECASE
)
LEVEL_PLAIN = re.compile(rf"(?P<level>{_LEVELS})\s(?=[a-z\[])", re.IGNORECASE)
LEVEL_FAR = re.compile(rf"(?:[A-Z0-9_.:/\-]+ ){{1,4}}?(?P<level>{_LEVELS}) ")
LEVEL_LETTER = re.compile(r"(?P<level>[VDIWEF])(?:/|\s)")
BRACKET = re.compile(r"\[[^\[\]]{0,300}(?:\[[^\[\]]{0,80}\][^\[\]]{0,120}){0,3}\]|<\d+\.\d+\.\d+>|\{[\w./-]+:\d+\}")
PAREN = re.compile(r"\([A-Za-z][\w.-]*\)(?=\s)")
PID = re.compile(r"#?\d{1,7}(?:#\d+)?(?=[\s:|\]])|--+")
HOST_PROC = re.compile(
    r"(?P<host>[\w.:/@#-]+) +(?:-- )?(?P<proc>[A-Za-z_/][\w./()@-]*(?: [\d.]+)?)"
    r"(?:\[[\w.-]{1,24}\])?(?:\s?\([\w.]+(?:\[\d+\])?\))?:\s?"
)
LOGGER = re.compile(r"(?P<name>[A-Za-z_][\w./$@#-]{1,160})(?:\s*:\s|:(?=[^\s\d/]))")
LOGGER_DASH = re.compile(r"(?P<name>(?=\d*[A-Za-z_])[\w./$:@-]{0,120}(?: \*?\w{1,3})?) - ")
LOGGER_BARE = re.compile(r"(?P<name>[a-z_]\w*(?:\.[A-Za-z_$]\w*){1,12})\s+(?=\[|- |[A-Z(])")
COLUMN = re.compile(r"[A-Z][A-Za-z.]{1,24} {2,}")
PIPES = re.compile(r"(?:[A-Za-z0-9_.-]{1,60}\|){1,4}")
PID_DASHES = re.compile(r"\d{1,7} -{2,3}(?= )")
AFTER_LEVEL = re.compile(r"/[\w-]+(?:\]|(?=\s))")
RFC5424 = re.compile(
    r"<(?P<pri>\d{1,3})>1 (?P<iso>\S{10,40}) (?P<host>\S{1,255}) (?P<app>\S{1,48}) \S{1,128} \S{1,32} "
    r"(?:-|\[[^\]]{0,200}\])\s?"
)
CRI = re.compile(r"std(?:out|err) [FP] ")
PRI = re.compile(r"<(?P<pri>\d{1,3})>")
FILE_LINE = re.compile(r"(?P<name>[\w./-]+\.[a-z]\w{0,4}:\d+)[\]:]?\s|(?P<name2>\w+(?:::\w+)+)[\]:]\s")
PY_LEVEL = re.compile(r"(?P<level>CRITICAL|ERROR|WARNING|INFO|DEBUG):(?P<name>[\w.]+):")
NET_LEVEL = re.compile(r"(?P<level>trce|dbug|info|warn|fail|crit): (?P<name>[\w.]+)\[\d+\]$")
START_LEVEL = re.compile(
    rf"(?:\[\s?(?P<b>(?i:{_LEVELS}))\s?\]|(?P<c>{_LEVELS})(?=:\s|\s?\|\s|\s-\s|\s\[)|(?P<d>{_LEVELS})(?=\s+[A-Za-z\[(]))"
)
NOT_LOGGER = re.compile(r"(?:Exception|Error|Throwable|Failure)$|^(?:java|javax|kotlin|System)\.|^https?$")
