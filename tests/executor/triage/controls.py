"""Example lines of real shapes, made up here, with what a reader should see in them."""

from collections.abc import Sequence

from services.executor.triage import Line, SourceReport, SourceTriage

# (line, severity, message as the header's end leaves it; None where the message is not the point)
LINES: list[tuple[str, str, str | None]] = [
    # JSON: zap, pino, structlog, Elastic, Serilog, MongoDB, no level
    ('{"level":"error","ts":1700000000.1,"msg":"dial failed","error":"refused"}', "error", "dial failed: refused"),
    ('{"level":50,"time":1700000000123,"msg":"boom"}', "error", "boom"),
    ('{"level":30,"time":1700000000123,"msg":"0 failed"}', "info", "0 failed"),
    ('{"event":"slow","level":"warning","timestamp":"2026-11-21T09:00:00Z"}', "warning", "slow"),
    ('{"@timestamp":"2026-11-21T09:00:00Z","log.level":"WARN","message":"x"}', "warning", "x"),
    ('{"@t":"2026-11-21T09:00:00Z","@l":"Fatal","@mt":"gone"}', "critical", "gone"),
    ('{"t":{"$date":"2026-11-21T09:00:00Z"},"s":"E","c":"NETWORK","msg":"lost"}', "error", "lost"),
    ('{"msg":"all is well"}', "info", "all is well"),
    ('{"message":"request done","status":503}', "error", "request done"),
    # logfmt
    ('time="2026-11-21T09:00:00Z" level=warning msg="disk almost full"', "warning", "disk almost full"),
    ("ts=2026-11-21T09:00:00Z caller=main.go:1 level=error msg=stopped err=EOF", "error", "stopped: EOF"),
    # syslog, also with a priority, RFC 5424, ISO stamps
    ("Jun 14 15:16:01 combo sshd(pam_unix)[19939]: check pass; user unknown", "info", "check pass; user unknown"),
    ("<11>Jun 14 15:16:01 combo app[1]: nothing", "error", "nothing"),
    ("<34>1 2026-11-21T09:00:00.003Z host su 12 ID47 - 'su root' for lonvick", "critical", "'su root' for lonvick"),
    ("2026-11-21T09:00:00+01:00 host app[12]: started", "info", "started"),
    # klog, Go, Rust
    ("I1121 09:00:00.678901    1234 file.go:123] starting up", "info", "starting up"),
    ("E1121 09:00:00.678901       1 reflector.go:324] watch ended", "error", "watch ended"),
    ("F1121 09:00:00.678901       1 main.go:3] gone", "critical", "gone"),
    ("2026/11/21 09:00:00 listening on :8080", "info", "listening on :8080"),
    ("[2026-11-21T09:00:00Z WARN  mycrate::module] odd", "warning", "odd"),
    ("2026-11-21T09:00:00.000Z ERROR mycrate::x: bad", "error", "bad"),
    # Java: log4j, logback, Spring Boot, Hadoop, ZooKeeper, Spark, HDFS, Kafka, Elasticsearch
    ("2026-11-21 09:00:00,978 INFO [main] org.apache.app.Master: Created x", "info", "Created x"),
    ("2026-11-21 09:00:00,978 - WARN  [Send:1:Cnx$Worker@679] - Interrupted", "warning", "Interrupted"),
    ("17/06/09 20:10:40 INFO executor.Backend: Registered", "info", "Registered"),
    ("081109 203615 148 INFO dfs.DataNode$Responder: terminating", "info", "terminating"),
    ("2026-11-21T09:00:00.123Z ERROR 1 --- [  main] o.s.b.Tomcat  : no port", "error", "no port"),
    ("09:00:00.123 [main] WARN  com.acme.Foo - odd", "warning", "odd"),
    ("[2026-11-21 09:00:00,123] ERROR [Broker id=0] no leader (kafka.X)", "error", "no leader (kafka.X)"),
    ("[2026-11-21T09:00:00,123][WARN ][o.e.n.Node       ] [n-1] slow", "warning", "slow"),
    # Python
    ("2026-11-21 09:00:00,123 - app - ERROR - it broke", "error", "it broke"),
    ("WARNING:app.jobs:careful", "warning", "careful"),
    ("[2026-11-21 09:00:00 +0000] [7] [INFO] Booting worker", "info", "Booting worker"),
    ("[2026-11-21 09:00:00,123: CRITICAL/MainProcess] gone", "critical", "gone"),
    ("[2026-11-21, 09:00:00 UTC] {task.py:12} INFO - done", "info", "done"),
    # web servers
    ('192.0.2.1 - - [21/Nov/2026:09:00:00 +0000] "GET /a/b HTTP/1.1" 200 1 "-" "c"', "info", '"GET /a/<*>" 200'),
    ('192.0.2.1 - - [21/Nov/2026:09:00:00 +0000] "GET /a/b HTTP/1.1" 503 1 "-" "c"', "error", '"GET /a/<*>" 503'),
    ('192.0.2.1 - bob [21/Nov/2026:09:00:00 +0000] "POST /a?x=1 HTTP/2" 404 1', "info", '"POST /a" 404'),
    ('INFO:     127.0.0.1:1234 - "GET /x HTTP/1.1" 500 Internal Server Error', "error", '"GET /x" 500'),
    ("2026/11/21 09:00:00 [crit] 12#12: *3 connect() to x", "critical", None),
    ("[Sun Dec 04 04:47:44 2005] [error] mod_jk child in error state 7", "error", "mod_jk child in error state 7"),
    ("[Sun Dec 04 04:47:44 2005] [notice] jk2_init() ok", "info", "jk2_init() ok"),
    # databases, brokers, others
    ("2026-11-21 09:00:00.000 UTC [12] LOG:  ready", "info", "ready"),
    ('2026-11-21 09:00:00.000 UTC [12] ERROR:  relation "x" does not exist', "error", 'relation "x" does not exist'),
    ("2026-11-21T09:00:00.1Z 0 [Warning] [MY-010055] [Server] self signed", "warning", "self signed"),
    ("1:M 21 Nov 2026 09:00:00.000 * Ready to accept", "info", "* Ready to accept"),
    ("2026-11-21 09:00:00.000 [info] <0.1.0> complete", "info", "complete"),
    ("11-21 09:00:00.811  1702  2395 D WindowManager: printing", "debug", "printing"),
    ("20261121-22:15:29:606|Step_LSC|30002312|onChange 3579", "info", "onChange 3579"),
    ("20261121-0:6:26:5|Step_LSC|30002312|onChange 3579", "info", "onChange 3579"),
    ("- 1131566461 2005.11.09 #8# Nov 9 12:01:01 #8#/#8# crond[12]: (root) CMD", "info", "(root) CMD"),
    (
        "- 1117838570 2005.06.03 R02-M1:J12 2005-06-03-15.42.50.363779 R02-M1:J12 RAS KERNEL INFO cache ok",
        "info",
        "cache ok",
    ),
    ("134681 node-246 unix.hw state.x 1077804742 1 Component is ok", "info", "Component is ok"),
    ("[10.30 16:49:06] chrome.exe *64 - a.example.org:443 open", "info", "a.example.org:443 open"),
    ("2026-09-28 04:30:30, Info                  CBS    Loaded", "info", "Loaded"),
    ("[   12.345678] usb 1-1: new device", "info", "usb 1-1: new device"),
    ("[09:00:00 WRN] odd", "warning", "odd"),
    ("2026-11-21T09:00:00.123Z stdout F plain words", "info", "plain words"),
    # plain: words decide, negation is heard
    ("Error: cannot find module", "error", "Error: cannot find module"),
    ("error while loading", "error", "error while loading"),
    ("connection refused by peer", "error", None),
    ("Out of memory: Killed process 12", "critical", None),
    ("warning: deprecated option", "warning", None),
    ("request timed out", "warning", None),
    ("finished with 0 errors", "unknown", None),
    ("finished with 7 errors", "error", None),
    ("10 errors", "error", None),
    ("no error found", "unknown", None),
    ("error_count=0 done", "unknown", None),
    ("errors: 0, warnings: 0", "unknown", None),
    ("errors: 3, warnings: 0", "error", None),
    ("error=null", "unknown", None),
    ("without any errors", "unknown", None),
    ("failover complete", "unknown", None),
    ("opened /var/log/error.log", "unknown", None),
    ("hello world", "unknown", "hello world"),
    # a sentence is no header
    ("Job 12 started at 2026-11-21 09:00:00 ok", "unknown", "Job 12 started at 2026-11-21 09:00:00 ok"),
    ("2026-11-21 09:00:00 ERROR Failed: reason", "error", "Failed: reason"),
    ("2026-11-21 09:00:00 ERROR java.lang.Error: reason", "error", "java.lang.Error: reason"),
]


def lines(text: str, *, stream: str = "", at: str | None = None) -> list[Line]:
    return [Line(line, at, stream) for line in text.split("\n")]


def triaged(fed: Sequence[Line], *, known: frozenset[str] | None = None, source: str = "docker:api") -> SourceReport:
    triage = SourceTriage("tower", source, known_templates=known)
    triage.feed(fed)
    return triage.finish()


def stamped(texts: Sequence[str], *, start_s: int = 0, step_s: float = 1.0) -> list[Line]:
    """One line each `step_s` seconds from 2026-11-21 09:00 UTC on."""
    out = []
    for i, text in enumerate(texts):
        at = start_s + int(i * step_s)
        out.append(
            Line(text, f"2026-11-21T{9 + at // 3600:02d}:{at // 60 % 60:02d}:{at % 60:02d}.000000001Z", "stdout")
        )
    return out
